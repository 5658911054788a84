"""The distillation loop: from trajectories to a proxy set, resumable and repeatable by seed."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from models import ModelSpec, layout_of
from server_toolkit.distill.checkpoint import (
    DistillState,
    load_state,
    run_fingerprint,
    save_state,
)
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.divergence import WINDOW, guard_against_divergence
from server_toolkit.distill.freed_memory import freed_memory_kept
from server_toolkit.distill.initial_images import Images, ServerSet, initial_images
from server_toolkit.distill.iteration import (
    Run,
    SegmentMatch,
    current_images,
    current_labels,
    initial_state,
    iterate,
    network_of,
    parameterisation_of,
)
from server_toolkit.distill.label_start import last_points, smoothed_labels, teacher_labels
from server_toolkit.distill.proxy_set import ProxySet
from server_toolkit.distill.ranks import ALONE, Ranks
from server_toolkit.distill.segments import Segment, Trajectories, list_segments
from server_toolkit.distill.tones import in_tones_of
from server_toolkit.distill.windows import choose_window
from server_toolkit.errors import DistillationError


@dataclass(frozen=True)
class DistillProgress:
    """One iteration done. `match_loss` is the mean over its segments, before the update.

    `gradient_norms` are of "images" (their parameters), "label_logits" and "step_size" (its
    logarithm). `rate_scale` multiplies all learning rates. `event` tells of a divergence.
    `snapshot()` gives the images `(N, C, H, W)`, the labels `(N, classes)` and the classes `(N,)`
    as they would now be saved.
    """

    iteration: int
    iterations: int
    match_loss: float
    step_size: float
    segments: tuple[SegmentMatch, ...]
    gradient_norms: Mapping[str, float]
    rate_scale: float
    event: str | None
    seconds: float
    snapshot: Callable[[], tuple[Images, Images, npt.NDArray[np.int64]]]


@freed_memory_kept()
def distill(
    trajectories: Trajectories,
    spec: ModelSpec,
    *,
    config: DistillConfig,
    server_set: ServerSet | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[DistillProgress], None] | None = None,
    ledger_id: str = "",
    device: str | torch.device = "cpu",
    ranks: Ranks = ALONE,
) -> ProxySet:
    """Learn images, soft labels and a step size that make a student follow the trajectories.

    Each iteration matches random segments (Cazenavette et al. 2022) with the exact gradient of
    `match_gradient` and takes an Adam step. The finished images get back the mean and deviation of
    those that they started from. With `checkpoint`, a run that was killed resumes from that file
    and ends with bit-identical images on the same machine; the file stays when the run is done.
    While it runs the process keeps freed memory (`freed_memory_kept`). `ledger_id` is only
    recorded. Several `ranks` share the segments of an iteration, all return the proxy set, and the
    first writes the checkpoint. Raises `DistillationError` where no segment fits, the checkpoint
    belongs to another run, or no iteration has a finite loss.
    """
    segments = segments_of(trajectories, spec, config)
    start, hard_labels = initial_images(
        config.start,
        spec,
        images_per_class=config.images_per_class,
        seed=config.seed,
        server_set=server_set,
    )
    network = network_of(config, spec, device=device)
    images = torch.from_numpy(start).to(device)
    if config.label_start == "teacher":
        teachers = last_points(trajectories, config.teacher_points)
        label_logits = teacher_labels(network, teachers, images)
    else:
        label_logits = smoothed_labels(hard_labels, spec.classes).to(device)
    run = Run(config, network, segments, parameterisation_of(config, spec), ranks)
    fingerprint = run_fingerprint(config, spec, segments, [start, label_logits.cpu().numpy()])
    state = initial_state(run, images, label_logits)
    if checkpoint:
        load_state(checkpoint, state, fingerprint)

    def finished() -> Images:
        made = current_images(state, run)
        return in_tones_of(start, made) if state.iteration else made

    while state.iteration < config.iterations:
        began_s = time.monotonic()
        matches, norms = iterate(state, run)
        loss = state.losses[-1]
        finite = all(math.isfinite(norm) for norm in norms.values())
        event = guard_against_divergence(state, loss if finite else math.nan)
        if progress:
            progress(
                DistillProgress(
                    iteration=state.iteration,
                    iterations=config.iterations,
                    match_loss=loss,
                    step_size=state.values["log_step"].exp().item(),
                    segments=matches,
                    gradient_norms=norms,
                    rate_scale=state.rate_scale,
                    event=event,
                    seconds=time.monotonic() - began_s,
                    snapshot=lambda: (finished(), current_labels(state), hard_labels),
                )
            )
        if (
            checkpoint
            and ranks.is_first
            and (state.iteration % WINDOW == 0 or state.iteration == config.iterations)
        ):
            save_state(checkpoint, state, fingerprint)

    return ProxySet(
        images=finished(),
        labels=current_labels(state),
        hard_labels=hard_labels,
        step_size=state.values["log_step"].exp().item(),
        spec=spec,
        metadata={
            "ledger_id": ledger_id,
            "segments": [segment.description for segment in segments],
            "rounds": sorted(trajectories.global_path),
            "devices": sorted(trajectories.device_path),
            "seed": config.seed,
            "config": config.to_dict(),
            "match_loss": _final_loss(state),
            "start": config.start,
            "software": f"trajsyn {importlib.metadata.version('trajsyn')}",
        },
    )


def _final_loss(state: DistillState) -> float | None:
    """Return the mean loss of the last iterations that led to the present values."""
    if state.adam_count:
        return float(np.mean(state.losses[-min(WINDOW, state.adam_count) :]))
    return state.best_loss if math.isfinite(state.best_loss) else None


def segments_of(
    trajectories: Trajectories, spec: ModelSpec, config: DistillConfig
) -> tuple[Segment, ...]:
    """Return the segments that a run with these settings is made from.

    Raises `DistillationError` where there is none or the weights are of another network.
    """
    window = choose_window(
        config.window,
        trajectories,
        first_round=config.first_round,
        last_round=config.last_round,
    )
    segments = list_segments(
        trajectories,
        kind=config.segment,
        rounds_ahead=config.rounds_ahead,
        first_round=window.first,
        last_round=window.last,
    )
    if segments[0].start.size != layout_of(spec).size:
        raise DistillationError(
            f"the trajectories have {segments[0].start.size} weights, "
            f"the network {layout_of(spec).size}; they belong to another network"
        )
    return segments
