"""What the attacks that judge a model return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class AttackResult:
    """The outcome for `N` images.

    `adversarial` `(N, C, H, W)` holds, for every image that the attack turned, the image that did
    it, in the ball and in [0, 1]; elsewhere the clean image. `robust` `(N,) bool` is true where the
    clean answer is right and the attack found nothing. `zero_gradient` `(N,) bool` tells, for the
    attacks that follow gradients, the attacked images with a gradient of exactly zero where the
    attack began.
    """

    adversarial: Tensor
    robust: Tensor
    zero_gradient: Tensor | None = None


@dataclass(frozen=True)
class AutoAttackResult:
    """AutoAttack's outcome for `N` images; attack names are apgd-ce, apgd-t, fab-t and square.

    `adversarial` and `robust` are as in `AttackResult`. `clean` `(N,) bool`: the clean answer is
    right. `robust_after` counts the images left after each attack, in the order they ran;
    `broken_by` `(N,) bool` tells the images that each attack was the first to turn.
    `zero_gradient` `(N,) bool` is that of apgd-ce.
    """

    adversarial: Tensor
    robust: Tensor
    clean: Tensor
    robust_after: dict[str, int]
    broken_by: dict[str, Tensor]
    zero_gradient: Tensor
