"""`server-toolkit release`: sign a model as the next version for all devices."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption, JsonFileOption
from server_toolkit.commands.progress import interrupt_on_sigterm

if TYPE_CHECKING:
    from server_toolkit.stages.release import Released


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(release)


def release(
    *,
    model: Annotated[str, typer.Option(help="The model to release, or fedavg.")],
    force: Annotated[
        bool, typer.Option("--force", help="Release what misses the gate; this is recorded.")
    ] = False,
    json_file: JsonFileOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Export, sign and record a model; a running `serve` publishes it within a second.

    It must be evaluated first, together with fedavg, and meet the limits of the release section.
    """
    from server_toolkit.config import load_config
    from server_toolkit.stages.release import run_release
    from server_toolkit.stages.workspace import Workspace

    interrupt_on_sigterm()
    workspace = Workspace.open(load_config(config))
    released = run_release(workspace, model, force=force)
    show_release(model, released)
    if json_file is not None:
        json_file.write_text(json.dumps(dataclasses.asdict(released.manifest), indent=1))


def show_release(model: str, released: Released) -> None:
    """Print what is on its way to the devices."""
    manifest = released.manifest
    typer.echo(
        f"release {manifest.version} ({model}): fp32 {manifest.fp32.blob.size} bytes, "
        f"int8 {manifest.int8.blob.size} bytes, in {released.directory}"
    )
    if released.overridden:
        typer.echo(f"WARNING: the gate was overridden: {released.overridden}", err=True)
