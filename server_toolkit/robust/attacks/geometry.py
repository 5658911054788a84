"""Norms, balls and starts in them, for batches of images in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from server_toolkit.robust.attacks.result import Norm

TINY = 1e-12  # keeps the direction of a zero vector finite


def lengths(differences: Tensor, norm: Norm) -> Tensor:
    """Return the norm `(N,)` of each of `N` differences."""
    flat = differences.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)


def as_column(values: Tensor, images: Tensor) -> Tensor:
    """Return `(N,)` values shaped so that they multiply `images` one by one."""
    return values.view(-1, *[1] * (images.ndim - 1))


def unit(vectors: Tensor, norm: Norm) -> Tensor:
    """Return each vector divided by its norm; a zero vector stays zero."""
    return vectors / as_column(lengths(vectors, norm) + TINY, vectors)


def steepest(gradients: Tensor, norm: Norm) -> Tensor:
    """Return the direction of length 1 that the gradient rewards most."""
    return gradients.sign() if norm == "linf" else unit(gradients, norm)


def project(points: Tensor, images: Tensor, *, epsilon: float, norm: Norm) -> Tensor:
    """Return the points pulled into the ball around `images`, then into [0, 1]."""
    if norm == "linf":
        return torch.clamp(points, images - epsilon, images + epsilon).clamp_(0, 1)
    away = points - images
    shrink = (epsilon / (lengths(away, norm) + TINY)).clamp_(max=1)
    return (images + away * as_column(shrink, images)).clamp_(0, 1)


def random_start(
    images: Tensor, *, epsilon: float, norm: Norm, generator: torch.Generator
) -> Tensor:
    """Return a random point at distance `epsilon` from each image, clamped into [0, 1].

    l∞: a uniform draw scaled until its largest coordinate is `epsilon`; l2: a Gaussian draw scaled
    to length `epsilon` (as AutoPGD starts). `generator` is a CPU one.
    """
    draw = torch.rand if norm == "linf" else torch.randn
    noise = draw(images.shape, generator=generator, dtype=images.dtype)
    if norm == "linf":
        noise = 2 * noise - 1
    return (images + epsilon * unit(noise, norm).to(images.device)).clamp_(0, 1)
