"""`server-toolkit pipeline`: everything after the rounds, for the configured arm."""

from __future__ import annotations

from typing import Annotated

import typer

from server_toolkit.commands.compute import DeviceOption, ThreadsOption, choose_device
from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption
from server_toolkit.commands.progress import interrupt_on_sigterm, show_progress
from server_toolkit.commands.release import show_release


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(pipeline)


def pipeline(
    *,
    between_rounds: Annotated[
        bool,
        typer.Option(
            "--between-rounds",
            help="Only distil and harden, and let the next round start from the result.",
        ),
    ] = False,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Distil, harden, evaluate and release the configured arm; `serve` runs this by itself.

    What is done is skipped, so an interrupted run carries on when started again.
    """
    from server_toolkit.config import load_config
    from server_toolkit.stages.pipeline import run_between_rounds, run_pipeline
    from server_toolkit.stages.workspace import Workspace

    interrupt_on_sigterm()
    workspace = Workspace.open(load_config(config))
    torch_device = choose_device(device, threads=threads)
    if between_rounds:
        name = run_between_rounds(workspace, show=show_progress, device=torch_device)
        number = workspace.ledger.latest_round()
        said = f"round {number} will start from {name}" if name else "nothing to harden now"
        typer.echo(said)
        return
    released = run_pipeline(workspace, show=show_progress, device=torch_device)
    arm = workspace.config.pipeline.arm
    if released is None:
        typer.echo(f"{arm} is released already; nothing to do")
    else:
        show_release(arm, released)
