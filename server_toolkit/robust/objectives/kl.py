"""KL on adversarial and on clean images: the default of `harden`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server_toolkit.robust.native_network import cross_entropies
from server_toolkit.robust.objectives.base import AttackThenTrain, Terms


@dataclass(frozen=True)
class Kl(AttackThenTrain):
    """KL(q | f(x')) + w · KL(q | f(x)), with x' = argmax KL(q | f(x')).

    With q from a teacher on the clean image it is robust distillation (RSLAD, Zi et al. 2021, up to
    a common factor). With a hard class both terms are cross-entropies.
    """

    clean_weight: float

    def loss(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> Terms:
        """Return both divergences and their weighted sum."""
        # KL(q | f) = CE(q, f) - H(q), and q is given.
        entropy = torch.special.entr(labels).sum(dim=1).mean()
        attacked, clean = (
            loss - entropy for loss in cross_entropies(model, labels, adversarial, images)
        )
        return Terms(attacked + self.clean_weight * clean, attacked, clean)
