"""MART: a margin on attacked images, and more weight for images that are not yet learned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from server_toolkit.robust.objectives.base import (
    AttackThenTrain,
    Terms,
    log_probabilities_of_both,
)

ALMOST_ONE = 1.0001  # of the authors' code: keeps the logarithm finite where a wrong class is sure


@dataclass(frozen=True)
class Mart(AttackThenTrain):
    """BCE(f(x'), y) + β · (1 - f_y(x)) · KL(f(x) | f(x')) (Wang et al. 2020).

    BCE(p, y) = -log p_y - log(1.0001 - max_{k≠y} p_k), and x' = argmax CE(y, f(x')). For
    probabilities q the loss is its expectation over a class y drawn from q: the margin term is
    -Σ_y q_y log(1.0001 - max_{k≠y} p_k), the weight 1 - Σ_y q_y f_y(x).
    """

    beta: float

    def loss(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> Terms:
        """Return the boosted cross-entropy, the weighted divergence, and their sum."""
        log_adversarial, log_clean = log_probabilities_of_both(model, adversarial, images)
        margin = -(ALMOST_ONE - largest_other(log_adversarial.exp())).log()
        boosted = (labels * (margin - log_adversarial)).sum(dim=1).mean()
        p = log_clean.exp()
        divergence = (p * (log_clean - log_adversarial)).sum(dim=1)
        weighted = ((1 - (labels * p).sum(dim=1)) * divergence).mean()
        return Terms(boosted + self.beta * weighted, boosted, weighted)


def largest_other(probabilities: Tensor) -> Tensor:
    """Return max_{k≠y} p_k for every y, `(N, classes)` as `probabilities`."""
    values, index = probabilities.topk(2, dim=1)
    first, second = values[:, :1], values[:, 1:]
    return first.expand_as(probabilities).scatter(1, index[:, :1], second)
