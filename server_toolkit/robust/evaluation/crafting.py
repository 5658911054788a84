"""One batch of images under one attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from server_toolkit.robust import attacks
from server_toolkit.robust.attacks.model import CPU_BATCH, Model
from server_toolkit.robust.evaluation.judgement import Norm


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """The size of every attack, and the effort of those whose effort can be chosen."""

    norm: Norm
    epsilon: float
    steps: int = 20
    square_queries: int = 5000

    def describe(self, attack: str) -> dict[str, Any]:
        """Return the settings that `attack` has, for the record."""
        if attack == "pgd":
            return {"steps": self.steps, "step_size": self.epsilon / 4, "restarts": 1}
        if attack in ("square", "autoattack"):
            return {"square_queries": self.square_queries}
        return {}


@dataclass(frozen=True)
class Crafted:
    """Attacked images `(N, C, H, W)`, and what the attack itself says of the model it ran on.

    `robust` `(N,) bool` is None for attacks that do not look; `broken_by` is of AutoAttack, what
    each of its parts was the first to turn.
    """

    images: Tensor
    robust: Tensor | None = None
    broken_by: Mapping[str, Tensor] = field(default_factory=dict)


PartProgress = Callable[[str, int], None]
"""Called after each part of AutoAttack with its name and how many images of the batch stand."""


def craft(
    attack: str,
    model: Model,
    images: Tensor,
    labels: Tensor,
    settings: AttackSettings,
    *,
    seed: int,
    progress: PartProgress | None = None,
) -> Crafted:
    """Attack a batch `(N, C, H, W) float32 in [0, 1]` on `model`; `seed` fixes what is random."""
    epsilon, norm = settings.epsilon, settings.norm
    if attack == "fgsm":
        return Crafted(attacks.fgsm(model, images, labels, epsilon=epsilon))
    if attack == "pgd":
        generator = torch.Generator().manual_seed(seed)
        at_once = CPU_BATCH if images.device.type == "cpu" else len(images)
        parts = [slice(i, i + at_once) for i in range(0, len(images), at_once)]
        ends = [
            attacks.pgd(
                model, images[part], labels[part], epsilon=epsilon, steps=settings.steps,
                generator=generator,
            )
            for part in parts
        ]  # fmt: skip
        return Crafted(torch.cat(ends))
    if attack == "autoattack":
        whole = attacks.autoattack(
            model, images, labels, epsilon=epsilon, norm=norm, seed=seed,
            square_queries=settings.square_queries, progress=progress,
        )  # fmt: skip
        return Crafted(whole.adversarial, whole.robust, whole.broken_by)
    options: dict[str, Any] = {}
    if attack != "cw_l2":  # which looks for the nearest, however far
        options["epsilon"] = epsilon
    if attack not in ("cw_l2", "cw_linf"):
        options["norm"] = norm
    if attack not in ("cw_l2", "fab_t"):  # which draw nothing
        options["seed"] = seed
    if attack == "square":
        options["queries"] = settings.square_queries
    result = getattr(attacks, attack)(model, images, labels, **options)
    return Crafted(result.adversarial, result.robust)
