"""FAB: the nearest misclassified image, by projections onto linearised boundaries.

Fast adaptive boundary attack (Croce & Hein 2020), in its targeted form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server_toolkit.robust.attacks.geometry import as_column, lengths, random_start
from server_toolkit.robust.attacks.hyperplane import to_hyperplane
from server_toolkit.robust.attacks.model import Model, loss_gradients, predict
from server_toolkit.robust.attacks.result import AttackResult, Norm
from server_toolkit.robust.attacks.working_set import (
    Standing,
    drop_fallen,
    likeliest_wrong,
    seeded,
    wrong,
)

STEPS = 100
TARGETS = 9
ALPHA_MAX = 0.1  # the largest weight of the projection of the clean image
ETA = 1.05  # how far beyond the hyperplane a step goes
BETA = 0.9  # how far from the clean image a misclassified point is pulled back
SHORTEST = 1e-8  # of a projection, so that two of length 0 weigh the same


def fab_t(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    steps: int = STEPS,
    targets: int = TARGETS,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
) -> AttackResult:
    """Attack `images` `(N, C, H, W) float32 in [0, 1]` by targeted FAB.

    `labels` `(N,)` are class indices. One run for each of the `targets` wrong classes with the
    largest clean logits, the largest first; all wrong classes where there are fewer. The first run
    starts at the clean image, each further one of `restarts` from a random point half as far away
    as `epsilon`. An image falls as soon as a misclassified one lies within `epsilon`.
    """
    standing = Standing(model, images, labels, batch_size=batch_size)
    generator = seeded(seed)
    for target in likeliest_wrong(standing.logits, labels, targets).T:
        for restart in range(restarts):
            place = standing.indices()
            image = images[place]
            start = image
            if restart:
                start = random_start(image, epsilon=epsilon / 2, norm=norm, generator=generator)
            state = _Walkers(place, image, labels[place], target[place], start)
            for _ in range(steps):
                if len(state.place) == 0:
                    break
                state = _advance(model, state, standing, epsilon, norm, batch_size)
    return standing.result()


@dataclass
class _Walkers:
    """One row an image that is still attacked."""

    place: Tensor  # among all images
    image: Tensor
    label: Tensor
    target: Tensor
    current: Tensor


def _advance(
    model: Model,
    state: _Walkers,
    standing: Standing,
    epsilon: float,
    norm: Norm,
    batch_size: int | None,
) -> _Walkers:
    """Take one step, drop the images that fell, and pull misclassified points towards theirs."""
    point = _beyond_boundary(model, state, norm, batch_size)
    answered_wrong = wrong(predict(model, point, batch_size=batch_size), state.label)
    away = point - state.image
    fell = answered_wrong & (lengths(away, norm) <= epsilon)
    state.current = torch.where(
        as_column(answered_wrong & ~fell, point), state.image + BETA * away, point
    )
    return drop_fallen(state, standing, fell, state.current)


def _beyond_boundary(model: Model, state: _Walkers, norm: Norm, batch_size: int | None) -> Tensor:
    """Return the points one step beyond the boundary between label and target, linearised.

    A mean of the projections of the point and of the clean image, which keeps it near the latter.
    """
    point, image = state.current, state.image
    _, difference, gradient = loss_gradients(
        model, point, _lead, state.label, state.target, batch_size=batch_size
    )
    normal = gradient.flatten(1)
    rise = -difference + (normal * (point - image).flatten(1)).sum(1)
    count = len(point)
    changes = to_hyperplane(
        torch.cat([point, image]).flatten(1),
        normal.repeat(2, 1),
        torch.cat([-difference, rise]),
        norm,
    )
    far = as_column(lengths(changes, norm).clamp_(min=SHORTEST), image)
    alpha = (far[:count] / (far[:count] + far[count:])).clamp_(max=ALPHA_MAX)
    from_point = point + ETA * changes[:count].view_as(point)
    from_image = image + ETA * changes[count:].view_as(point)
    return ((1 - alpha) * from_point + alpha * from_image).clamp_(0, 1)


def _lead(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return z_target - z_label `(N,)`."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
