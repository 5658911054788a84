"""TRADES: clean accuracy, and the same answer for the attacked image as for the clean one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server_toolkit.robust.objectives.base import (
    AttackThenTrain,
    Terms,
    log_probabilities_of_both,
)

START_DEVIATION = 0.001


@dataclass(frozen=True)
class Trades(AttackThenTrain):
    """CE(q, f(x)) + β · KL(f(x) | f(x')), with x' = argmax KL(f(x) | f(x')).

    Zhang et al. 2019, algorithm 1, with the divergence and the start x + 0.001 · N(0, 1) of their
    code. The gradient goes through both arguments of the divergence. The attack needs no label.
    """

    beta: float

    def attack(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,  # noqa: ARG002
        *,
        epsilon: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return x' by PGD on the divergence from the clean answer."""
        with torch.no_grad():
            answer = model(images).softmax(dim=1)
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        start = images + START_DEVIATION * noise.to(images.device)
        return self.inner(model, start, images, answer, epsilon=epsilon)

    def loss(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> Terms:
        """Return the cross-entropy of clean images, the divergence, and their weighted sum."""
        log_adversarial, log_clean = log_probabilities_of_both(model, adversarial, images)
        clean = -(labels * log_clean).sum(dim=1).mean()
        divergence = (log_clean.exp() * (log_clean - log_adversarial)).sum(dim=1).mean()
        return Terms(clean + self.beta * divergence, divergence, clean)
