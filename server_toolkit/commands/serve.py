"""`server-toolkit serve`: the daemon."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer

from edge_sdk.protocol.signing import load_private_key
from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption
from server_toolkit.config import ServerConfig, load_config
from server_toolkit.errors import ConfigError
from server_toolkit.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from server_toolkit.ingest.service import ServeState


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(serve)


def serve(*, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the rounds, record updates, then distil, harden, evaluate and publish the release.

    Carries on where it was, however it ended. Ctrl-C or SIGTERM end it cleanly.
    """
    from server_toolkit.ingest.service import Service

    settings = load_config(config)
    ledger = open_ledger(settings)
    key = load_private_key(settings.directory / "keys" / "server.key")
    with _status_line() as show:
        service = Service(settings, ledger, key, on_state=show)

        def stop(_signal: int, _frame: FrameType | None) -> None:
            service.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        service.run()


def open_ledger(settings: ServerConfig) -> Ledger:
    """Open the ledger and check that it belongs to this file; raises `ConfigError` if not."""
    ledger = Ledger.open(settings.directory)
    if ledger.run != settings.run.name:
        raise ConfigError(
            f"{settings.file}: [run] name is {settings.run.name!r}, but the ledger beside it holds "
            f"run {ledger.run!r}; a new run needs a new directory ('server-toolkit init')"
        )
    if ledger.spec != settings.model.spec:
        raise ConfigError(
            f"{settings.file}: [model] differs from what the run began with; "
            "put it back, or begin a new run with 'server-toolkit init'"
        )
    return ledger


@contextmanager
def _status_line() -> Iterator[Callable[[ServeState], None]]:
    """Give a function that shows the state: one live line on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _state: None
        return
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    root = logging.getLogger()
    root.handlers = [RichHandler(console=console, show_path=False)]
    with console.status("starting") as line:
        yield lambda state: line.update(_describe(state))


def _describe(state: ServeState) -> str:
    link = "" if state.connected else "no broker · "
    if state.round < state.rounds:
        what = f"round {state.round} of {state.rounds}: {state.reported}/{state.devices} devices"
    else:
        what = f"{state.rounds} rounds done · pipeline {state.pipeline}"
    release = f" · release {state.release}" if state.release else ""
    return f"{link}{what} · {state.accepted + state.late} updates, {state.refused} refused{release}"
