"""KL on adversarial and on clean images: the default of `harden`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import kl_div

from server_toolkit.robust.objectives.base import (
    AttackThenTrain,
    Terms,
    log_probabilities_of_both,
)


@dataclass(frozen=True)
class Kl(AttackThenTrain):
    """KL(q | f(x')) + w · KL(q | f(x)), with x' = argmax KL(q | f(x')).

    With q from a teacher on the clean image it is robust distillation (RSLAD, Zi et al. 2021, up to
    a common factor). With a hard class both terms are cross-entropies.
    """

    clean_weight: float

    def loss(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> Terms:
        """Return both divergences and their weighted sum."""
        log_adversarial, log_clean = log_probabilities_of_both(model, adversarial, images)
        attacked = kl_div(log_adversarial, labels, reduction="batchmean")
        clean = kl_div(log_clean, labels, reduction="batchmean")
        return Terms(attacked + self.clean_weight * clean, attacked, clean)
