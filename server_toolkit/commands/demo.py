"""`server-toolkit demo`: the whole loop on this machine, on real images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from server_toolkit.commands.broker import Kind


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(demo)


def demo(
    *,
    output: Annotated[Path, typer.Option(help="New directory for everything it makes.")] = Path(
        "demo-output"
    ),
    broker: Annotated[
        Kind | None, typer.Option(help="Default: mosquitto if installed, else amqtt.")
    ] = None,
) -> None:
    """Run the whole loop with one server and four device processes; takes a few minutes.

    Devices train on shards of scikit-learn's digits, the server distils, hardens, evaluates and
    releases, the devices install. Ends with a table and OUTPUT/report.html.
    """
    from rich.console import Console

    from server_toolkit.commands.progress import interrupt_on_sigterm
    from server_toolkit.demo.run import run_demo

    logging.getLogger("server_toolkit").setLevel(logging.WARNING)  # the demo tells its own story
    interrupt_on_sigterm()  # so that the demo's processes end with it
    run_demo(output, Console(), broker=broker.value if broker else None)
