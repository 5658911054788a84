"""Carlini & Wagner's attacks (2017): on the margin in the l∞ ball, and for the least l2 change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server_toolkit.robust.attacks.geometry import as_column, lengths, project
from server_toolkit.robust.attacks.losses import margins
from server_toolkit.robust.attacks.model import Model, loss_gradients
from server_toolkit.robust.attacks.result import AttackResult
from server_toolkit.robust.attacks.working_set import Standing, drop_fallen, seeded, wrong

LINF_STEPS = 20
L2_STEPS = 200
SEARCHES = 9
LEARNING_RATE = 0.1  # the 0.01 of the paper is for 10,000 steps and gets nowhere in 200,
LAST_RATE = 0.05  # but 0.1 to the end circles round the optimum: it falls to this share
FIRST_C = 1.0
HARDER = 10.0  # times c, as long as no c has worked
INSIDE = 0.999  # keeps the inverse of tanh within reach of pixels of 0 and 1
DECAY_1, DECAY_2, TINY = 0.9, 0.999, 1e-8  # Adam's


def cw_linf(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = LINF_STEPS,
    step_size: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> AttackResult:
    """Attack `images` `(N, C, H, W) float32 in [0, 1]` by PGD on the margin, from a uniform start.

    Ascends min(max_{i != y} z_i - z_y, 0), which no longer changes once the answer is wrong: an
    image that fell stays as it is. `labels` `(N,)` are class indices; `step_size` is `epsilon / 4`
    unless given.
    """
    step = epsilon / 4 if step_size is None else step_size
    standing = Standing(model, images, labels, batch_size=batch_size)
    noise = torch.rand(images.shape, generator=seeded(seed), dtype=images.dtype).to(images.device)
    start = project(images + epsilon * (2 * noise - 1), images, epsilon=epsilon, norm="linf")
    place = standing.indices()
    state = _Climbers(place, images[place], labels[place], start[place], start[place])
    for taken in range(steps + 1):
        if len(state.place) == 0:
            break
        logits, _, state.gradient = loss_gradients(
            model, state.current, margins, state.label, batch_size=batch_size
        )
        if taken == 0:
            standing.note_zero_gradients(state.place, state.gradient)
        state = drop_fallen(state, standing, wrong(logits, state.label), state.current)
        ahead = state.current + step * state.gradient.sign()
        state.current = project(ahead, state.image, epsilon=epsilon, norm="linf")
    return standing.result()


@dataclass
class _Climbers:
    """One row an image that is still attacked."""

    place: Tensor  # among all images
    image: Tensor
    label: Tensor
    current: Tensor
    gradient: Tensor


def cw_l2(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | None = None,
    steps: int = L2_STEPS,
    searches: int = SEARCHES,
    learning_rate: float = LEARNING_RATE,
    first_c: float = FIRST_C,
    batch_size: int | None = None,
) -> AttackResult:
    """Look for the misclassified image nearest to each of `images` in l2.

    Minimises ||x' - x||² + c max(z_y - max_{i != y} z_i, 0) by Adam over w, x' = (tanh(w) + 1) / 2,
    `steps` times from w of the clean image for each of `searches` values of c: `first_c`, ten times
    more until one works, then the middle between the largest that failed and the least that worked.
    The learning rate falls geometrically from `learning_rate` within each.

    `images` `(N, C, H, W) float32 in [0, 1]`, `labels` `(N,)` class indices. Without `epsilon` an
    image falls wherever the nearest one is; with it, only within `epsilon`, and its search ends as
    soon as something is found there. Nothing is random.
    """
    standing = Standing(model, images, labels, batch_size=batch_size)
    place = standing.indices()
    image = images[place]
    zeros = image.new_zeros(len(place))
    state = _Searchers(
        place=place,
        image=image,
        label=labels[place],
        nearest=image.clone(),
        distance=zeros + torch.inf,
        c=zeros + first_c,
        failed_c=zeros,
        worked_c=zeros + torch.inf,
        worked=zeros > 0,
        w=image,
        mean=image,
        square=image,
    )
    for _ in range(searches):
        state.w = torch.atanh((2 * state.image - 1) * INSIDE)
        state.mean, state.square = torch.zeros_like(state.w), torch.zeros_like(state.w)
        state.worked = torch.zeros_like(state.worked)
        for step in range(1, steps + 1):
            if len(state.place) == 0:
                return standing.result()
            rate = learning_rate * LAST_RATE ** ((step - 1) / steps)
            _descend(model, state, step, rate, batch_size)
            if epsilon is not None:
                state = drop_fallen(state, standing, state.distance <= epsilon, state.nearest)
        _choose_c(state)
    if epsilon is None:
        drop_fallen(state, standing, state.distance < torch.inf, state.nearest)
    return standing.result()


@dataclass
class _Searchers:
    """One row an image that is still attacked."""

    place: Tensor  # among all images
    image: Tensor
    label: Tensor
    nearest: Tensor  # misclassified image so far
    distance: Tensor
    c: Tensor
    failed_c: Tensor  # the largest
    worked_c: Tensor  # the least
    worked: Tensor  # whether this c did
    w: Tensor
    mean: Tensor  # Adam's, of the gradient and of its square
    square: Tensor


def _descend(
    model: Model, state: _Searchers, step: int, learning_rate: float, batch_size: int | None
) -> None:
    """Look at the current points, then take Adam's step number `step` (from 1)."""
    squashed = torch.tanh(state.w)
    point = (squashed + 1) / 2
    logits, margin, gradient = loss_gradients(
        model, point, margins, state.label, batch_size=batch_size
    )
    fell = wrong(logits, state.label)
    distance = lengths(point - state.image, "l2")
    nearer = fell & (distance < state.distance)
    state.worked = state.worked | fell
    state.distance = torch.where(nearer, distance, state.distance)
    state.nearest = torch.where(as_column(nearer, point), point, state.nearest)

    push = torch.where(margin < 0, state.c, 0)
    slope = 2 * (point - state.image) - as_column(push, point) * gradient
    slope = slope * (1 - squashed.square()) / 2
    state.mean = DECAY_1 * state.mean + (1 - DECAY_1) * slope
    state.square = DECAY_2 * state.square + (1 - DECAY_2) * slope.square()
    size = (state.square / (1 - DECAY_2**step)).sqrt() + TINY
    state.w = state.w - learning_rate * (state.mean / (1 - DECAY_1**step)) / size


def _choose_c(state: _Searchers) -> None:
    """Set the next c of each row from whether this one worked."""
    state.worked_c = torch.where(state.worked, state.c, state.worked_c)
    state.failed_c = torch.where(state.worked, state.failed_c, state.c)
    state.c = torch.where(
        state.worked_c < torch.inf, (state.failed_c + state.worked_c) / 2, HARDER * state.c
    )
