"""`server-toolkit distill`: a synthetic proxy set from the weights that devices sent."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from server_toolkit.commands.compute import DeviceOption, ThreadsOption, choose_device
from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption
from server_toolkit.commands.progress import interrupt_on_sigterm, show_progress


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(distill)


def distill(
    *,
    name: Annotated[str, typer.Option(help="What the proxy set is to be called.")],
    start: Annotated[
        str | None,
        typer.Option(
            help="Begin with noise, structured or server_set; default: distill.start of the file."
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=0, help="How many; default: distill.iterations of the file.")
    ] = None,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Distil the ledger's trajectories into proxy/NAME.safetensors.

    Interrupted, it carries on where it was when run again with the same options.
    """
    from server_toolkit.config import load_config
    from server_toolkit.distill.config import DistillConfig
    from server_toolkit.stages.distill import run_distill
    from server_toolkit.stages.workspace import Workspace

    interrupt_on_sigterm()
    workspace = Workspace.open(load_config(config))
    options: dict[str, Any] = {"start": start, "iterations": iterations}
    settings = dataclasses.replace(
        workspace.config.settings_of("distill", DistillConfig),
        **{key: value for key, value in options.items() if value is not None},
    )
    torch_device = choose_device(device, threads=threads)
    with show_progress(f"distil {name}") as progress:
        path = run_distill(
            workspace, name, settings=settings, progress=progress, device=torch_device
        )
    typer.echo(f"proxy set {name}: {path}")
