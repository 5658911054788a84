"""`server-toolkit`: the command line of the server."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_group

from edge_sdk import errors as edge_errors
from models import SpecError
from server_toolkit import __version__
from server_toolkit.errors import ServerError
from server_toolkit.logs import log_to_stderr

EXIT_CODES = """Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 ledger missing, \
damaged or in use, 4 refused update, 5 distillation failed, 6 model misses the release gate, 75 \
time budget used up, 130 interrupted (both: run the command again to carry on)."""

# One module a command group in `server_toolkit.commands`; each adds its commands in `register`.
GROUPS = (
    "init",
    "devices",
    "broker",
    "serve",
    "simulate",
    "status",
    "trajectories",
    "distill",
    "harden",
    "evaluate",
    "release",
    "pipeline",
    "demo",
    "benchmark",
)


class LazyGroup(TyperGroup):
    """Imports a command's module when it is asked for, so that `serve` never loads torch."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return the names in the order of `GROUPS`."""
        return list(GROUPS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, or None."""
        if cmd_name not in GROUPS:
            return None
        holder = typer.Typer()
        importlib.import_module(f"server_toolkit.commands.{cmd_name}").register(holder)
        return get_group(holder).get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer itself would end an interrupted one without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _end("interrupted", 130)


app = typer.Typer(
    cls=LazyGroup,
    help="Run federated rounds, distil what devices learned, harden the model and release it.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"server-toolkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.", envvar="TRAJSYN_LOG_LEVEL")
    ] = "info",
) -> None:
    """Options that come before the command."""
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise typer.BadParameter(f"{log_level!r} is no log level", param_hint="--log-level")
    log_to_stderr(level)


def main() -> None:
    """Run the command line; a user's mistake ends in one message and an exit code."""
    try:
        app()
    except ServerError as error:
        _end(error, error.exit_code)
    except (edge_errors.ConfigError, SpecError) as error:
        _end(error, 2)
    except edge_errors.EdgeError as error:
        _end(error, 1)
    except OSError as error:  # a directory that may not be written, a full disk
        _end(error, 1)


def _end(message: object, code: int) -> NoReturn:
    typer.echo(f"server-toolkit: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
