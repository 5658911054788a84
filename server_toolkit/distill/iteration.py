"""One iteration: match some segments, and move images, labels and step size by Adam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models import ModelSpec
from server_toolkit.distill.augmentation import draw_augmentations
from server_toolkit.distill.checkpoint import DistillState
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.initial_images import Images
from server_toolkit.distill.matching import FlatNetwork, MatchGradient, Student, match_each
from server_toolkit.distill.parameterisation import (
    Fourier,
    LowResolution,
    Parameterisation,
    Pixels,
)
from server_toolkit.distill.ranks import ALONE, Ranks
from server_toolkit.distill.segments import Segment
from server_toolkit.distill.windows import curriculum_end

BETA_1, BETA_2, ADAM_EPSILON = 0.9, 0.99, 1e-8
LOG_STEP_RANGE = (-10.0, 2.0)
# How far one iteration may move a pixel (or what stands for it), a label logit, and log α. The
# default rates stay far below; with rates that are absurd it is what remains of them.
LARGEST_MOVE = {"images": 0.5, "label_logits": 2.0, "log_step": math.log(1.25)}


@dataclass(frozen=True)
class Run:
    """What stays the same over all iterations; `together` is that of `match_each`."""

    config: DistillConfig
    network: FlatNetwork
    segments: tuple[Segment, ...]
    parameterisation: Parameterisation
    ranks: Ranks = ALONE
    together: bool | None = None


@dataclass(frozen=True)
class SegmentMatch:
    """One segment of an iteration; a skipped one had a loss above `skip_above`."""

    segment: str
    match_loss: float
    skipped: bool


def network_of(
    config: DistillConfig, spec: ModelSpec, *, device: str | torch.device
) -> FlatNetwork:
    """Return the network that the students train."""
    return FlatNetwork(
        spec,
        device=device,
        product_dtype=torch.bfloat16 if config.mixed_precision else None,
        compiled=config.compiled,
    )


def parameterisation_of(config: DistillConfig, spec: ModelSpec) -> Parameterisation:
    """Return what is learned in place of pixels."""
    if config.parameterisation == "low_resolution":
        return LowResolution(image_size=spec.image_size, factor=config.resolution_factor)
    if config.parameterisation == "fourier":
        return Fourier(image_size=spec.image_size, channels=spec.channels)
    return Pixels()


def initial_state(run: Run, images: Tensor, label_logits: Tensor) -> DistillState:
    """Return the state before the first iteration, on the device of `images`."""
    values = {
        "images": run.parameterisation.initial(images),
        "label_logits": label_logits,
        "log_step": torch.tensor(run.config.initial_step_size).log().to(images.device),
    }
    if run.config.image_average:
        values["average"] = torch.zeros_like(images)
        values["average_weight"] = torch.zeros((), device=images.device)
    return DistillState.fresh(values)


def iterate(state: DistillState, run: Run) -> tuple[tuple[SegmentMatch, ...], dict[str, float]]:
    """Match some segments and update images, labels and step size in place.

    Returns each segment's loss and the norms of the gradients; where one of these is not finite,
    nothing is updated.
    """
    config, values = run.config, state.values
    parameters = values["images"]
    images = run.parameterisation.pixels(parameters).detach()
    step_size = values["log_step"].exp().item()
    drawn = [_draw(run, state.iteration, n) for n in range(config.segments_per_iteration)]
    mine = [drawn[n] for n in run.ranks.share(len(drawn))]
    matched = match_each(
        run.network,
        students=[_student(run, segment, rng, images) for segment, rng in mine],
        images=images,
        label_logits=values["label_logits"],
        step_size=step_size,
        momentum=config.student_momentum,
        together=run.together,
    )
    rows = run.ranks.gather(torch.stack([_as_row(match, step_size) for match in matched]))
    losses = rows[:, 0].tolist()
    kept = [config.skip_above is None or not loss > config.skip_above for loss in losses]
    state.iteration += 1
    state.losses.append(sum(losses) / len(losses))
    matches = tuple(
        SegmentMatch(segment.description, loss, skipped=not keep)
        for (segment, _), loss, keep in zip(drawn, losses, kept, strict=True)
    )
    if not any(kept):
        return matches, {}

    # The mean over rows in the order of their segments is the same on any number of ranks.
    chosen = rows[[n for n, keep in enumerate(kept) if keep]]
    mean = chosen.mean(dim=0) if len(chosen) > 1 else chosen[0]
    step_gradient, image_gradient, label_gradient = torch.split(
        mean[1:], [1, images.numel(), values["label_logits"].numel()]
    )
    gradients = {
        "images": run.parameterisation.pull_back(parameters, image_gradient.view_as(images)),
        "label_logits": label_gradient.view_as(values["label_logits"]),
        "log_step": step_gradient.view(()),
    }
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    if all(math.isfinite(norm) for norm in norms.values()):
        _update(state, run, gradients)
    return matches, norms


def _draw(run: Run, iteration: int, number: int) -> tuple[Segment, np.random.Generator]:
    """Return segment `number` of an iteration and the generator of its student's batches."""
    config = run.config
    # Seeding by iteration leaves no generator state to keep in a checkpoint.
    rng = np.random.default_rng([config.seed, iteration, *([number] if number else [])])
    end = curriculum_end(
        first=min(segment.round for segment in run.segments),
        last=max(segment.round for segment in run.segments),
        rounds=config.curriculum_rounds,
        until=config.curriculum_until,
        done=iteration / config.iterations,
    )
    open_now = [segment for segment in run.segments if segment.round <= end]
    return open_now[int(rng.integers(len(open_now)))], rng


def _student(run: Run, segment: Segment, rng: np.random.Generator, images: Tensor) -> Student:
    batches = _student_batches(len(images), run.config, rng, images.device)
    families = run.config.augmentation
    return Student(
        start=torch.from_numpy(segment.start).to(images.device),
        target=torch.from_numpy(segment.target).to(images.device),
        batches=batches,
        augment=draw_augmentations(families, steps=len(batches), rng=rng) if families else None,
    )


def _as_row(match: MatchGradient, step_size: float) -> Tensor:
    """Return the loss and the gradients of log α, images and labels as one flat vector."""
    # d/d log α = α d/dα
    numbers = torch.tensor([match.loss, match.step_size * step_size], device=match.images.device)
    return torch.cat([numbers, match.images.flatten(), match.label_logits.flatten()])


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


def _update(state: DistillState, run: Run, gradients: Mapping[str, Tensor]) -> None:
    """Take one Adam step on everything that is learned."""
    config, values = run.config, state.values
    rates = {
        "images": config.image_learning_rate,
        "label_logits": config.label_learning_rate if config.learn_labels else 0.0,
        "log_step": config.step_size_learning_rate,
    }
    # Full rates for the first half of the run, then linearly down to zero.
    decay = min(1.0, 2 * (1 - (state.iteration - 1) / config.iterations))
    state.adam_count += 1
    for name, rate in rates.items():
        if rate:
            _adam(state, name, gradients[name], rate * decay * state.rate_scale)
    run.parameterisation.project_(values["images"])
    values["log_step"].clamp_(*LOG_STEP_RANGE)
    if config.image_average:
        kept = config.image_average
        pixels = run.parameterisation.pixels(values["images"]).detach()
        values["average"].mul_(kept).add_(pixels, alpha=1 - kept)
        values["average_weight"].mul_(kept).add_(1 - kept)


def _adam(state: DistillState, name: str, gradient: Tensor, rate: float) -> None:
    """Take one Adam step (Kingma & Ba 2015, algorithm 1) on one of the state's values."""
    first, second = state.first_moments[name], state.second_moments[name]
    first.mul_(BETA_1).add_(gradient, alpha=1 - BETA_1)
    second.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
    scale = (second / (1 - BETA_2**state.adam_count)).sqrt().add_(ADAM_EPSILON)
    move = rate / (1 - BETA_1**state.adam_count) * first / scale
    state.values[name] -= move.clamp_(-LARGEST_MOVE[name], LARGEST_MOVE[name])


def current_images(state: DistillState, run: Run) -> Images:
    """Return the images that would be saved now: averaged (FTD, Du et al. 2023) where asked."""
    values = state.values
    images = run.parameterisation.pixels(values["images"]).detach()
    if run.config.image_average and values["average_weight"] > 0:
        # Divided by the weights' sum, as in Adam: no trace of the zeros it began with.
        images = values["average"] / values["average_weight"]
    # Enlarging and averaging may round to a little above 1.
    result: Images = images.clamp(0, 1).cpu().numpy()
    return result


def current_labels(state: DistillState) -> Images:
    """Return the soft labels that would be saved now."""
    labels: Images = state.values["label_logits"].softmax(dim=1).cpu().numpy()
    return labels
