"""AutoPGD on the cross-entropy and on differences of logits ratios (Croce & Hein 2020)."""

from __future__ import annotations

from torch import Tensor

from server_toolkit.robust.attacks.apgd_ascent import Ascent
from server_toolkit.robust.attacks.losses import cross_entropies, dlr, targeted_dlr
from server_toolkit.robust.attacks.model import Model
from server_toolkit.robust.attacks.result import AttackResult, Norm
from server_toolkit.robust.attacks.working_set import Standing, likeliest_wrong, seeded

STEPS = 100
TARGETS = 9


def apgd_ce(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    steps: int = STEPS,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
) -> AttackResult:
    """Attack `images` `(N, C, H, W) float32 in [0, 1]` by AutoPGD on the cross-entropy.

    `labels` `(N,)` are class indices. A restart attacks what still stands after the runs before.
    """
    standing = Standing(model, images, labels, batch_size=batch_size)
    ascent = Ascent(model, epsilon, norm, steps, batch_size, seeded(seed))
    for _ in range(restarts):
        ascent.run(standing, lambda z, y, _: cross_entropies(z, y), images, labels, labels)
    return standing.result()


def apgd_dlr(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    steps: int = STEPS,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
) -> AttackResult:
    """Attack as `apgd_ce` does, on the difference of logits ratio."""
    standing = Standing(model, images, labels, batch_size=batch_size)
    ascent = Ascent(model, epsilon, norm, steps, batch_size, seeded(seed))
    for _ in range(restarts):
        ascent.run(standing, lambda z, y, _: dlr(z, y), images, labels, labels)
    return standing.result()


def apgd_t(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    steps: int = STEPS,
    targets: int = TARGETS,
    seed: int = 0,
    batch_size: int | None = None,
) -> AttackResult:
    """Attack as `apgd_ce` does, on the targeted difference of logits ratio.

    One run for each of the `targets` wrong classes with the largest clean logits, the largest
    first; all wrong classes where there are fewer.
    """
    standing = Standing(model, images, labels, batch_size=batch_size)
    ascent = Ascent(model, epsilon, norm, steps, batch_size, seeded(seed))
    for target in likeliest_wrong(standing.logits, labels, targets).T:
        ascent.run(standing, targeted_dlr, images, labels, target)
    return standing.result()
