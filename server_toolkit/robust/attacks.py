"""White-box attacks in the l∞ ball, on images in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """Return one signed gradient step of length `epsilon` (Goodfellow et al. 2015), clamped.

    `images` `(N, C, H, W) float32 in [0, 1]`; `labels` `(N,)` class indices or `(N, classes)`
    probabilities. The result has the shape of `images` and stays in [0, 1].
    """
    return (images + epsilon * _gradient_sign(model, images, labels)).clamp(0, 1)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
) -> Tensor:
    """Return the end point of projected gradient ascent from a uniform start (Madry et al. 2018).

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
        ascent = step * _gradient_sign(model, adversarial, labels)
        adversarial = torch.clamp(adversarial + ascent, low, high)
    return adversarial


def _gradient_sign(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the sign of the loss gradient with respect to every pixel."""
    leaf = images.detach().requires_grad_()
    # A sum, not a mean: the sign of one image's gradient must not depend on the batch's size.
    loss = cross_entropy(model(leaf), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient.sign()
