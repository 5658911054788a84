"""`server-toolkit broker`: a broker for trying things out, in the foreground."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from server_toolkit.broker import start_broker


class Kind(StrEnum):
    """The brokers that can be started."""

    MOSQUITTO = "mosquitto"
    AMQTT = "amqtt"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(broker)


def broker(
    *,
    directory: Annotated[Path, typer.Option(help="Where the broker keeps its files.")],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="Default: mosquitto if installed, else amqtt.")
    ] = None,
) -> None:
    """Run a broker on this machine's loopback until interrupted; for trying out only."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        running.process.terminate()

    with start_broker(directory, port=port, kind=kind.value if kind else None) as running:
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        typer.echo(f"{running.kind} listens on {running.host}:{running.port}; Ctrl-C ends it")
        running.process.wait()
