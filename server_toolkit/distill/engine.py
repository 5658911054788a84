"""The distillation loop: from trajectories to a proxy set, resumable and repeatable by seed."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models import ModelSpec, layout_of
from server_toolkit.distill.checkpoint import (
    DistillState,
    load_state,
    run_fingerprint,
    save_state,
)
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.initial_images import ServerSet, initial_images
from server_toolkit.distill.matching import FlatNetwork, match_gradient
from server_toolkit.distill.proxy_set import ProxySet
from server_toolkit.distill.segments import Segment, Trajectories, list_segments
from server_toolkit.errors import DistillationError

logger = logging.getLogger(__name__)

LABEL_SMOOTHING = 0.05
BETA_1, BETA_2, ADAM_EPSILON = 0.9, 0.99, 1e-8
WINDOW = 20  # iterations between two looks at the mean loss, and between two checkpoints
RISE = 1.5  # a window's mean this many times the best one counts as divergence
MAX_RESTORES = 5
LOG_STEP_RANGE = (-10.0, 2.0)


@dataclass(frozen=True)
class DistillProgress:
    """One iteration done; `match_loss` is that of its segment, before the update."""

    iteration: int
    iterations: int
    match_loss: float
    step_size: float


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
) -> ProxySet:
    """Learn images, soft labels and a step size that make a student follow the trajectories.

    Each iteration matches one random segment (Cazenavette et al. 2022) with the exact gradient of
    `match_gradient` and takes an Adam step. With `checkpoint`, a run that was killed resumes from
    that file and ends with bit-identical images on the same machine; the file stays when the run
    is done. `ledger_id` is only recorded. Raises `DistillationError` where no segment fits, the
    checkpoint belongs to another run, or no iteration has a finite loss.
    """
    segments = list_segments(
        trajectories,
        kind=config.segment,
        rounds_ahead=config.rounds_ahead,
        first_round=config.first_round,
        last_round=config.last_round,
    )
    if segments[0].start.size != layout_of(spec).size:
        raise DistillationError(
            f"the trajectories have {segments[0].start.size} weights, "
            f"the network {layout_of(spec).size}; they belong to another network"
        )
    start, hard_labels = initial_images(
        config.start,
        spec,
        images_per_class=config.images_per_class,
        seed=config.seed,
        server_set=server_set,
    )
    fingerprint = run_fingerprint(config, spec, segments, start)
    state = _initial_state(start, hard_labels, spec.classes, config, device)
    if checkpoint:
        load_state(checkpoint, state, fingerprint)

    network = FlatNetwork(spec, device=device)
    while state.iteration < config.iterations:
        loss = _iterate(state, network, segments, config)
        if progress:
            step_size = state.values["log_step"].exp().item()
            progress(DistillProgress(state.iteration, config.iterations, loss, step_size))
        guard_against_divergence(state, loss)
        if checkpoint and (state.iteration % WINDOW == 0 or state.iteration == config.iterations):
            save_state(checkpoint, state, fingerprint)

    return ProxySet(
        images=state.values["images"].cpu().numpy(),
        labels=state.values["label_logits"].softmax(dim=1).cpu().numpy(),
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
            "match_loss": float(np.mean(state.losses[-WINDOW:])) if state.losses else None,
            "start": config.start,
            "software": f"trajsyn {importlib.metadata.version('trajsyn')}",
        },
    )


def _initial_state(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    hard_labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    classes: int,
    config: DistillConfig,
    device: str | torch.device,
) -> DistillState:
    smooth = one_hot(torch.from_numpy(hard_labels), classes).float() * (1 - LABEL_SMOOTHING)
    return DistillState.fresh(
        {
            "images": torch.from_numpy(images).to(device),
            "label_logits": (smooth + LABEL_SMOOTHING / classes).log().to(device),
            "log_step": torch.tensor(config.initial_step_size).log().to(device),
        }
    )


def _iterate(
    state: DistillState, network: FlatNetwork, segments: Sequence[Segment], config: DistillConfig
) -> float:
    """Match one segment, update images, labels and step size in place, and return the loss."""
    # Seeding by iteration leaves no generator state to keep in a checkpoint.
    rng = np.random.default_rng([config.seed, state.iteration])
    segment = segments[int(rng.integers(len(segments)))]
    values = state.values
    images = values["images"]
    step_size = values["log_step"].exp().item()
    match = match_gradient(
        network,
        start=torch.from_numpy(segment.start).to(images.device),
        target=torch.from_numpy(segment.target).to(images.device),
        images=images,
        label_logits=values["label_logits"],
        step_size=step_size,
        batches=_student_batches(len(images), config, rng, images.device),
    )

    # Full rates for the first half of the run, then linearly down to zero.
    decay = min(1.0, 2 * (1 - state.iteration / config.iterations))
    updates = [
        ("images", match.images, config.image_learning_rate),
        ("label_logits", match.label_logits, config.label_learning_rate),
        (
            "log_step",
            torch.tensor(match.step_size * step_size, device=images.device),
            config.step_size_learning_rate,
        ),
    ]
    if not config.learn_labels:
        del updates[1]
    state.adam_count += 1
    for name, gradient, rate in updates:
        _adam(state, name, gradient, rate * decay * state.rate_scale)
    values["images"].clamp_(0, 1)
    values["log_step"].clamp_(*LOG_STEP_RANGE)
    state.iteration += 1
    state.losses.append(match.loss)
    return match.loss


def _student_batches(
    count: int, config: DistillConfig, rng: np.random.Generator, device: torch.device
) -> list[Tensor]:
    """Return the indices of every student step: whole passes, each image at most once in one."""
    size = min(config.batch_size, count)
    batches: list[Tensor] = []
    while len(batches) < config.student_steps:
        order = torch.from_numpy(rng.permutation(count)).to(device)
        batches += [order[i : i + size] for i in range(0, count - size + 1, size)]
    return batches[: config.student_steps]


def _adam(state: DistillState, name: str, gradient: Tensor, rate: float) -> None:
    """Take one Adam step (Kingma & Ba 2015, algorithm 1) on one of the state's values."""
    first, second = state.first_moments[name], state.second_moments[name]
    first.mul_(BETA_1).add_(gradient, alpha=1 - BETA_1)
    second.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
    scale = (second / (1 - BETA_2**state.adam_count)).sqrt().add_(ADAM_EPSILON)
    state.values[name] -= rate / (1 - BETA_1**state.adam_count) * first / scale


def guard_against_divergence(state: DistillState, loss: float) -> None:
    """Go back to the best values where the loss is not finite or has risen; else remember them."""
    if not np.isfinite(loss):
        _restore(state, "the matching loss is not finite")
    elif state.iteration % WINDOW == 0:
        mean = float(np.mean(state.losses[-WINDOW:]))
        if mean > RISE * state.best_loss:
            _restore(state, f"the matching loss rose from {state.best_loss:.3f} to {mean:.3f}")
        elif mean < state.best_loss:
            state.remember_best(mean)


def _restore(state: DistillState, reason: str) -> None:
    state.restores += 1
    if state.restores > MAX_RESTORES:
        raise DistillationError(
            f"{reason} at iteration {state.iteration}, after {MAX_RESTORES} restarts at lower "
            "rates; lower the learning rates or initial_step_size"
        )
    logger.warning("%s at iteration %d; back to the best", reason, state.iteration)
    state.restore_best()
