"""`server-toolkit harden`: adversarial training of the federated model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from server_toolkit.commands.compute import DeviceOption, ThreadsOption, choose_device
from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption
from server_toolkit.commands.progress import interrupt_on_sigterm, show_progress


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(harden)


def harden(
    *,
    name: Annotated[str, typer.Option(help="What the model is to be called.")],
    proxy: Annotated[str | None, typer.Option(help="The proxy set to train on.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Real images (npz) to train on, alone or beside --proxy.", metavar="FILE"
        ),
    ] = None,
    with_server_set: Annotated[
        bool,
        typer.Option("--with-server-set", help="Add the images of data.server_set."),
    ] = False,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Train the newest federated model on attacked images into models/NAME.safetensors.

    The configuration's table "harden" says how: the objective (kl, pgd_at, trades, mart, fast or
    free, each with AWP if wanted), whose labels, from the federated model or from scratch,
    averaging, a held-out part that ends it. docs/hardening.md explains every key. Every step's
    losses go to models/NAME.log.jsonl.

    Interrupted, it carries on where it was when run again with the same options; a model that is
    made already is kept.
    """
    from server_toolkit.config import load_config
    from server_toolkit.stages.harden import HardenSettings, run_harden
    from server_toolkit.stages.workspace import Workspace

    interrupt_on_sigterm()
    workspace = Workspace.open(load_config(config))
    settings = workspace.config.settings_of("harden", HardenSettings)
    # [harden] with_server_set is for proxy sets; it must not change what --images alone means.
    add_server_set = with_server_set or (settings.with_server_set and images is None)
    settings = dataclasses.replace(settings, with_server_set=add_server_set)
    torch_device = choose_device(device, threads=threads)
    with show_progress(f"harden {name}") as progress:
        path = run_harden(
            workspace,
            name,
            proxy=proxy,
            images=images,
            settings=settings,
            progress=progress,
            device=torch_device,
        )
    typer.echo(f"model {name}: {path}")
