"""Differentiable augmentation of a student's batches (DSA, Zhao and Bilen 2021).

Every transform is an affine map of the pixels with fixed parameters, so that the gradient passes
through it exactly. What a step does to its batch is drawn before the student starts: the forward
and the reverse sweep of that step see one transform, and so do all images of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from server_toolkit.distill.config import AugmentationFamily

FAMILIES: tuple[AugmentationFamily, ...] = get_args(AugmentationFamily)

# The strengths of DSA. Its brightness, 1 deviation of normalised pixels, is 1/4 of their range.
MAX_SCALE = 1.2
MAX_ROTATION_DEGREES = 15.0
CROP_PART = 0.125
CUTOUT_PART = 0.5
BRIGHTNESS, SATURATION, CONTRAST = 0.25, 2.0, 0.5

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What one step does to its images: a family, and its parameters in the family's own order.

    Maps `(N, C, H, W)` to the same shape; pixels that come from outside are 0. Colours may leave
    [0, 1] a little, as no pixel is clipped: clipping would cut the gradient.
    """

    family: AugmentationFamily
    parameters: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the transformed images, differentiable in `images`."""
        return _APPLY[self.family](images, *self.parameters)


def draw_augmentations(
    families: Sequence[AugmentationFamily], *, steps: int, rng: np.random.Generator
) -> list[Augmentation]:
    """Return one transform a step: a family chosen at random, with parameters from the same `rng`.

    Leave out "flip" where a mirrored image is of another class or of none. Raises `ValueError` for
    an unknown family or none.
    """
    if not families:
        raise ValueError(f"no family to draw from; choose from {', '.join(FAMILIES)}")
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}; choose from {', '.join(FAMILIES)}")
    drawn: list[Augmentation] = []
    for _ in range(steps):
        family = families[int(rng.integers(len(families)))]
        # Every family takes as many numbers, so that one more or less does not move later draws.
        drawn.append(Augmentation(family, _parameters(family, rng.random(3).tolist())))
    return drawn


def _parameters(family: AugmentationFamily, u: Sequence[float]) -> tuple[float, ...]:
    """Map numbers uniform in [0, 1) to a family's parameters."""
    if family == "flip":
        return (float(u[0] < 0.5),)
    if family == "scale":  # as likely larger as smaller
        return MAX_SCALE ** (2 * u[0] - 1), MAX_SCALE ** (2 * u[1] - 1)
    if family == "rotate":
        return (MAX_ROTATION_DEGREES * (2 * u[0] - 1),)
    if family == "color":
        return BRIGHTNESS * (u[0] - 0.5), SATURATION * u[1], CONTRAST + u[2]
    return u[0], u[1]


def _flip(images: Tensor, mirrored: float) -> Tensor:
    return images.flip(3) if mirrored else images


def _crop(images: Tensor, u: float, v: float) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = round(CROP_PART * height), round(CROP_PART * width)
    down, right = int(u * (2 * rows + 1)), int(v * (2 * columns + 1))
    padded = pad(images, (columns, columns, rows, rows))
    return padded[:, :, down : down + height, right : right + width]


def _scale(images: Tensor, along_x: float, along_y: float) -> Tensor:
    return _affine(images, ((1 / along_x, 0.0), (0.0, 1 / along_y)))


def _rotate(images: Tensor, degrees: float) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _affine(images, ((cos, -sin), (sin, cos)))


def _affine(images: Tensor, rows: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    """Resample bilinearly about the centre; `rows` map an output place to the input's."""
    matrix = torch.tensor([[*row, 0.0] for row in rows], dtype=images.dtype, device=images.device)
    places = affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images, places, align_corners=False)


def _cutout(images: Tensor, u: float, v: float) -> Tensor:
    height, width = images.shape[2:]
    side_y, side_x = round(CUTOUT_PART * height), round(CUTOUT_PART * width)
    top, left = int(u * (height + 1)) - side_y // 2, int(v * (width + 1)) - side_x // 2
    kept = torch.ones(height, width, dtype=images.dtype, device=images.device)
    kept[max(top, 0) : max(top + side_y, 0), max(left, 0) : max(left + side_x, 0)] = 0
    return images * kept


def _color(images: Tensor, brightness: float, saturation: float, contrast: float) -> Tensor:
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)
    images = grey + saturation * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast * (images - mean)


_APPLY: dict[AugmentationFamily, Callable[..., Tensor]] = {
    "flip": _flip,
    "crop": _crop,
    "scale": _scale,
    "rotate": _rotate,
    "cutout": _cutout,
    "color": _color,
}
