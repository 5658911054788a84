"""Random changes of images that leave their class as it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

FILLS = {"zero": "constant", "edge": "replicate"}


def shift(
    images: Tensor, *, max_pixels: int, generator: torch.Generator, fill: str = "zero"
) -> Tensor:
    """Move every image by its own whole number of pixels, up to `max_pixels` along each axis.

    `images` `(N, C, H, W)`; what moves in is 0 or, with `fill="edge"`, the border pixel.
    `generator` is a CPU one. Raises `ValueError` for another fill.
    """
    if fill not in FILLS:
        raise ValueError(f"fill is {fill!r}; choose one of {', '.join(FILLS)}")
    count, _, height, width = images.shape
    padded = pad(images, (max_pixels,) * 4, mode=FILLS[fill])
    offsets = torch.randint(0, 2 * max_pixels + 1, (2, count), generator=generator)
    rows = (offsets[0][:, None] + torch.arange(height)).to(images.device)
    columns = (offsets[1][:, None] + torch.arange(width)).to(images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    picked = padded[index, :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return picked.permute(0, 3, 1, 2).contiguous()


def flip(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mirror every image left to right with probability 1/2; wrong for digits and letters."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)
