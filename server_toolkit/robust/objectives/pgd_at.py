"""PGD-AT: the cross-entropy of attacked images, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from server_toolkit.robust.native_network import cross_entropies
from server_toolkit.robust.objectives.base import AttackThenTrain, Terms


@dataclass(frozen=True)
class PgdAt(AttackThenTrain):
    """CE(q, f(x')), with x' = argmax CE(q, f(x')) by PGD (Madry et al. 2018, eq. 2.1).

    For probabilities q, CE(q, f) = -Σ_y q_y log f_y: the expectation of the hard-label loss over
    a class drawn from q.
    """

    def loss(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> Terms:  # noqa: ARG002
        """Return the cross-entropy on the attacked images."""
        (attacked,) = cross_entropies(model, labels, adversarial)
        return Terms(attacked, attacked, None)
