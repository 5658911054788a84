"""PGD, projected gradient ascent in the l∞ ball (Madry et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from server_toolkit.robust.attacks.losses import cross_entropies
from server_toolkit.robust.attacks.model import Model, loss_gradient


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
) -> Tensor:
    """Return the end point of projected gradient ascent from a uniform start.

    Ascends the cross-entropy; `labels` are `(N,)` class indices or `(N, classes)` probabilities,
    for which that equals the KL divergence from them. `step_size` is `epsilon / 4` unless given.
    `generator` is a CPU one, so that a seed means the same start on every device. The result stays
    in [0, 1] and within `epsilon` of `images`.
    """
    step = epsilon / 4 if step_size is None else step_size
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    adversarial = torch.clamp(images + epsilon * (2 * noise - 1), low, high)
    for _ in range(steps):
        _, _, gradient = loss_gradient(model, adversarial, cross_entropies, labels)
        adversarial = torch.clamp(adversarial + step * gradient.sign(), low, high)
    return adversarial
