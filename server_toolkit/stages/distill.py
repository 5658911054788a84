"""Distil: from the ledger's trajectories to a proxy set with its lineage."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.engine import DistillProgress, distill, segments_of
from server_toolkit.distill.initial_images import ServerSet
from server_toolkit.distill.memory import as_text, free_bytes, predict_bytes, refuse_if_too_large
from server_toolkit.distill.picture_grid import save_picture_grid
from server_toolkit.distill.ranks import ALONE, Ranks
from server_toolkit.distill.run_log import RunLog
from server_toolkit.distill.start_kinds import needs_server_set
from server_toolkit.distill.windows import (
    RoundStatistics,
    Window,
    choose_window,
    round_statistics,
)
from server_toolkit.errors import ConfigError
from server_toolkit.stages.workspace import Progress, Workspace

log = logging.getLogger(__name__)

MEMORY_ADVICE = (
    "choose a smaller batch_size (on a GPU fewer segments_per_iteration, too), "
    "fewer images_per_class or fewer student_steps"
)


@dataclasses.dataclass(frozen=True)
class DistillPlan:
    """What a distillation would do: the rounds with their statistics, segments, and memory.

    `needed_bytes` is the prediction for one process, `free_bytes` None where nobody knows.
    """

    statistics: tuple[RoundStatistics, ...]
    window: Window
    segments: tuple[str, ...]
    needed_bytes: int
    free_bytes: int | None


def plan_distill(
    workspace: Workspace, *, settings: DistillConfig, device: str = "cpu"
) -> DistillPlan:
    """Look without doing; raises `DistillationError` where a run would have no segment."""
    trajectories = workspace.ledger.trajectories()
    return DistillPlan(
        statistics=round_statistics(trajectories),
        window=choose_window(
            settings.window,
            trajectories,
            first_round=settings.first_round,
            last_round=settings.last_round,
        ),
        segments=tuple(
            s.description for s in segments_of(trajectories, workspace.ledger.spec, settings)
        ),
        needed_bytes=predict_bytes(settings, workspace.ledger.spec, device=device),
        free_bytes=free_bytes(device),
    )


def run_distill(
    workspace: Workspace,
    name: str,
    *,
    settings: DistillConfig,
    progress: Progress,
    device: str = "cpu",
    grid_every: int = 0,
    ranks: Ranks = ALONE,
    earlier: str | None = None,
) -> Path:
    """Write and record `proxy/NAME.safetensors` and return its path.

    Beside it go the log `NAME.log.jsonl` and the picture `NAME.png`; every `grid_every` iterations
    a picture more in the folder `NAME.grid`. Interrupted, it leaves a checkpoint from which the
    same call carries on. The images of the proxy set called `earlier` come before those that are
    made. A proxy set that was made from the same rounds and settings is left as it
    is. Several `ranks` each match `segments_per_iteration` segments; the result is that of one
    process with as many as all of them. Raises `DistillationError`, also where the memory does not
    suffice, or `ConfigError`.
    """
    ledger = workspace.ledger
    settings = dataclasses.replace(
        settings, segments_per_iteration=settings.segments_per_iteration * ranks.world
    )
    server_set, server_set_sha256 = None, None
    if needs_server_set(settings.start):
        server_set, server_set_sha256 = _server_set(workspace)
    lineage = {
        "stage": "distill",
        "run": ledger.run,
        "settings": settings.to_dict(),
        "weights": _weights_sha256(workspace, settings),
        "server_set": server_set_sha256,
    }
    earlier_set = None
    if earlier is not None:
        earlier_set, lineage["earlier"] = workspace.proxy(earlier)
    path = workspace.path("proxy", name)
    if workspace.made_from("proxy", name, lineage):
        log.info("proxy set %s is made already: %s", name, path)
        return path
    refuse_if_too_large(
        "holding all weights",
        _trajectory_bytes(workspace, settings) * ranks.sharing("cpu"),
        "cpu",
        advice="use a machine with more memory",
    )
    trajectories = ledger.trajectories(devices=_needs_devices(settings))
    needed = predict_bytes(settings, ledger.spec, device=device, processes=ranks.world)
    if ranks.is_first:
        log.info("about %s of memory will be needed", as_text(needed))
    refuse_if_too_large("distilling", needed * ranks.sharing(device), device, advice=MEMORY_ADVICE)

    checkpoint = workspace.checkpoint("proxy", name, lineage)
    with RunLog(path.with_name(f"{name}.log.jsonl")) as run_log:

        def report(state: DistillProgress) -> None:
            if not ranks.is_first:
                return
            run_log.write(state)
            text = f"match loss {state.match_loss:.3f}, step size {state.step_size:.3g}"
            progress(state.iteration, state.iterations, text)
            if grid_every and state.iteration % grid_every == 0:
                picture = path.with_name(f"{name}.grid") / f"{state.iteration:06}.png"
                save_picture_grid(picture, *state.snapshot())

        proxy = distill(
            trajectories,
            ledger.spec,
            config=settings,
            server_set=server_set,
            checkpoint=checkpoint,
            progress=report,
            ledger_id=ledger.run,
            device=device,
            ranks=ranks,
        )
    if earlier_set is not None:
        proxy = proxy.joined_to(earlier_set)
    if ranks.is_first:
        save_picture_grid(path.with_suffix(".png"), proxy.images, proxy.labels, proxy.hard_labels)
        proxy.save(path)
        workspace.record("proxy", name, lineage)
        checkpoint.unlink(missing_ok=True)
    return path


def _server_set(workspace: Workspace) -> tuple[ServerSet, str]:
    path = workspace.server_set_path()
    if path is None:
        raise ConfigError(
            "start 'server_set' needs real images: name them in [data] server_set, "
            "or choose --start structured or noise"
        )
    data, sha256 = workspace.images(path)
    return ServerSet(data.images, data.labels), sha256


def _needs_devices(settings: DistillConfig) -> bool:
    """Say whether single devices' weights are read: as segments, or to choose the window."""
    return settings.segment != "fleet" or settings.window == "auto"


def _trajectory_bytes(workspace: Workspace, settings: DistillConfig) -> int:
    """Return what the weights that are read take, float32."""
    ledger = workspace.ledger
    vectors = ledger.latest_round() + 1 + len(ledger.hardened_bases())
    if _needs_devices(settings):
        vectors += sum(ledger.update_counts().values())
    return 4 * ledger.layout.size * vectors


def _weights_sha256(workspace: Workspace, settings: DistillConfig) -> str:
    """Return a hash over everything that the segments can be cut from.

    Rounds that come later do not change it where the settings name the last one, so that a set
    that was made between two rounds is not made again after them.
    """
    ledger = workspace.ledger
    last = ledger.latest_round()
    by_devices = settings.segment != "fleet" or settings.window == "auto"
    end = last
    if not by_devices and settings.window == "rounds" and settings.last_round is not None:
        end = min(last, settings.last_round + settings.rounds_ahead)
    names = [ledger.weights_blob(t).sha256 for t in range(end)]
    ends = [row.round for row in ledger.hardened_bases() if row.round < end] + [end]
    names += [ledger.aggregate_blob(t).sha256 for t in ends]
    # The window "auto" looks at how far the devices agree.
    if by_devices:
        names += [
            row.blob_sha256
            for row in ledger.updates()
            if row.round < last and row.verdict == "accepted"
        ]
    return hashlib.sha256(" ".join(names).encode()).hexdigest()
