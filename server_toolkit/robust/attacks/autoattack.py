"""AutoAttack: four attacks, each on what the ones before left (Croce & Hein 2020)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from server_toolkit.robust.attacks.apgd import apgd_ce, apgd_t
from server_toolkit.robust.attacks.fab import fab_t
from server_toolkit.robust.attacks.model import Model, predict
from server_toolkit.robust.attacks.result import AttackResult, AutoAttackResult, Norm
from server_toolkit.robust.attacks.square import QUERIES, square
from server_toolkit.robust.attacks.working_set import wrong

Progress = Callable[[str, int], None]
"""Called after each attack with its name and the number of images that still stand."""


def autoattack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    seed: int = 0,
    batch_size: int | None = None,
    square_queries: int = QUERIES,
    progress: Progress | None = None,
) -> AutoAttackResult:
    """Attack `images` `(N, C, H, W) float32 in [0, 1]` by AutoAttack's standard version.

    APGD on the cross-entropy (100 steps), APGD on the targeted difference of logits ratio (9
    targets), targeted FAB (9 targets) and Square (`square_queries`); each attacks the images that
    still get the right answer. `labels` `(N,)` are class indices. `model` is deterministic and in
    evaluation mode; give all images at once, `batch_size` of them go through the model together.

    With fewer than ten classes all wrong ones are targets; with fewer than four, where the targeted
    ratio has no denominator, see `losses.targeted_dlr`. Raises `ConfigError` for a model whose
    logits carry no gradient.
    """
    ball: dict[str, Any] = dict(epsilon=epsilon, norm=norm, seed=seed, batch_size=batch_size)
    attacks: dict[str, Callable[[Model, Tensor, Tensor], AttackResult]] = {
        "apgd-ce": partial(apgd_ce, **ball),
        "apgd-t": partial(apgd_t, **ball),
        "fab-t": partial(fab_t, **ball),
        "square": partial(square, **ball, queries=square_queries),
    }
    clean = ~wrong(predict(model, images, batch_size=batch_size), labels)
    adversarial, robust = images.clone(), clean.clone()
    zero_gradient = torch.zeros_like(clean)
    robust_after, broken_by = {}, {}
    for name, attack in attacks.items():
        places = robust.nonzero()[:, 0]
        broken_by[name] = torch.zeros_like(clean)
        if len(places):
            result = attack(model, images[places], labels[places])
            broken_by[name][places] = ~result.robust
            adversarial[places] = result.adversarial
            robust[places] = result.robust
            if name == "apgd-ce" and result.zero_gradient is not None:
                zero_gradient[places] = result.zero_gradient
        robust_after[name] = int(robust.sum())
        if progress is not None:
            progress(name, robust_after[name])
    return AutoAttackResult(adversarial, robust, clean, robust_after, broken_by, zero_gradient)
