"""`server-toolkit distill`: a synthetic proxy set from the weights that devices sent."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server_toolkit.commands.compute import DeviceOption, ThreadsOption, choose_device
from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption
from server_toolkit.commands.progress import interrupt_on_sigterm, show_progress

if TYPE_CHECKING:
    from server_toolkit.distill.config import DistillConfig
    from server_toolkit.stages.workspace import Progress, Workspace


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(distill)


def distill(
    *,
    name: Annotated[str, typer.Option(help="What the proxy set is to be called.")],
    start: Annotated[
        str | None,
        typer.Option(
            help="Begin with noise, structured (shapes for grey images, textures for colour "
            "ones), shapes, textures, server_set or server_blends, or several joined by '+'; "
            "default: distill.start of the file."
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Take segments of early, late, auto (the trajectory's own statistics choose) or "
            "rounds (first_round to last_round of the file); default: distill.window of the file."
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=0, help="How many; default: distill.iterations of the file.")
    ] = None,
    segments: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Segments an iteration, for each process under torchrun; default: "
            "distill.segments_per_iteration of the file.",
        ),
    ] = None,
    grid_every: Annotated[
        int,
        typer.Option(min=0, help="Write a picture of all images at this interval; 0: at the end."),
    ] = 0,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only show the rounds' statistics, the window and the memory needed."
        ),
    ] = False,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Distil the ledger's trajectories into proxy/NAME.safetensors.

    Beside it: NAME.png, a picture of the images; NAME.log.jsonl, a line an iteration.
    Interrupted, it carries on where it was when run again with the same options. On several GPUs
    or machines, start it with 'torchrun --nproc-per-node GPUS -m server_toolkit distill ...'.
    """
    from server_toolkit.config import load_config
    from server_toolkit.distill.config import DistillConfig
    from server_toolkit.distill.ranks import joined_ranks
    from server_toolkit.stages.distill import run_distill
    from server_toolkit.stages.workspace import Workspace

    interrupt_on_sigterm()
    torch_device = choose_device(device, threads=threads)
    with joined_ranks(torch_device) as (ranks, own_device):
        if not ranks.is_first:
            logging.getLogger().setLevel(logging.ERROR)
            ranks.wait()  # a ledger of an older version is brought up to date by one process
        workspace = Workspace.open(load_config(config))
        if ranks.is_first:
            ranks.wait()
        options: dict[str, Any] = {
            "start": start,
            "window": window,
            "iterations": iterations,
            "segments_per_iteration": segments,
        }
        settings = dataclasses.replace(
            workspace.config.settings_of("distill", DistillConfig),
            **{key: value for key, value in options.items() if value is not None},
        )
        if dry_run:
            if ranks.is_first:
                _show_plan(workspace, settings, own_device)
            return
        with _progress(f"distil {name}", shown=ranks.is_first) as progress:
            path = run_distill(
                workspace,
                name,
                settings=settings,
                progress=progress,
                device=own_device,
                grid_every=grid_every,
                ranks=ranks,
            )
        if ranks.is_first:
            typer.echo(f"proxy set {name}: {path}")


def _progress(title: str, *, shown: bool) -> contextlib.AbstractContextManager[Progress]:
    if shown:
        return show_progress(title)

    def nothing(_done: int, _total: int, _text: str) -> None:
        pass

    return contextlib.nullcontext(nothing)


def _show_plan(workspace: Workspace, settings: DistillConfig, device: str) -> None:
    from server_toolkit.commands.statistics_table import statistics_table
    from server_toolkit.distill.memory import as_text
    from server_toolkit.stages.distill import plan_distill

    plan = plan_distill(workspace, settings=settings, device=device)
    free = "an unknown amount is" if plan.free_bytes is None else f"{as_text(plan.free_bytes)} are"
    typer.echo(statistics_table(plan.statistics, plan.window))
    typer.echo(f"segments: {len(plan.segments)} ({plan.segments[0]} ... {plan.segments[-1]})")
    typer.echo(f"memory on {device}: about {as_text(plan.needed_bytes)} needed, {free} free")
