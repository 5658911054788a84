"""FGSM, one signed gradient step in the l∞ ball (Goodfellow et al. 2015)."""

from __future__ import annotations

from torch import Tensor

from server_toolkit.robust.attacks.losses import cross_entropies
from server_toolkit.robust.attacks.model import Model, loss_gradient


def fgsm(model: Model, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """Return one signed gradient step of length `epsilon`, clamped.

    `images` `(N, C, H, W) float32 in [0, 1]`; `labels` `(N,)` class indices or `(N, classes)`
    probabilities. The result has the shape of `images` and stays in [0, 1].
    """
    _, _, gradient = loss_gradient(model, images, cross_entropies, labels)
    return (images + epsilon * gradient.sign()).clamp(0, 1)
