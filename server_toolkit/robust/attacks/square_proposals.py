"""What the Square attack proposes: starts and windows (Andriushchenko et al. 2020)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from server_toolkit.robust.attacks.geometry import TINY, unit

Proposal = tuple[Tensor, Tensor]
"""The rows that a proposal changes, and these rows' new images."""


def linf_start(images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return `images` under vertical stripes of ±`epsilon`, one pixel wide, clamped."""
    count, channels, _, width = images.shape
    signs = _signs(torch.rand((count, channels, 1, width), generator=generator))
    return (images + epsilon * signs.to(images.device)).clamp_(0, 1)


def linf_proposal(
    images: Tensor, best: Tensor, epsilon: float, side: int, uniform: Tensor
) -> Proposal:
    """Propose one window an image, all of it at one end of the ball in each channel.

    `uniform` `(N, 5 + C)`. Every pixel of `best` lies at an end of the ball or of [0, 1], so adding
    ±2 epsilon and projecting, as the paper writes it, sets the window to the end of that sign.
    Rows whose window is there already are left out.
    """
    channels = images.shape[1]
    window = _window(images, side, uniform[:, :2]).expand(-1, channels, -1)
    signs = _signs(uniform[:, -channels:, None])
    inside = images.flatten(2).gather(2, window)
    new = (inside + epsilon * signs).clamp_(0, 1)
    changed = (new != best.flatten(2).gather(2, window)).flatten(1).any(1)
    rows = changed.nonzero()[:, 0]
    candidates = best[rows].contiguous()  # or flatten would copy, and the windows be lost
    candidates.flatten(2).scatter_(2, window[rows], new[rows])
    return rows, candidates


def l2_start(images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return `images` under a 5x5 grid of bumps with random signs, of length `epsilon`, clamped."""
    count, channels, height, width = images.shape
    tile = max(min(height, width) // 5, 1)
    change = torch.zeros_like(images)
    top = max(height - 5 * tile, 0) // 2
    left = max(width - 5 * tile, 0) // 2
    for row in range(top, height - tile + 1, tile):
        for column in range(left, width - tile + 1, tile):
            draw = torch.rand((count, channels + 1, 1, 1), generator=generator).to(images.device)
            bump = _turned(tile, draw[:, :1], images.device) * _signs(draw[:, 1:])
            change[:, :, row : row + tile, column : column + tile] = bump
    return (images + epsilon * unit(change, "l2")).clamp_(0, 1)


def l2_proposal(
    images: Tensor, best: Tensor, epsilon: float, side: int, uniform: Tensor
) -> Proposal:
    """Propose to move the length of the change in one window into another, mixed with a bump.

    `uniform` `(N, 5 + C)`. The receiving window gets a bump with random signs plus its own
    direction, with the length of both windows' change and of what is left of `epsilon`.
    """
    count, channels = images.shape[:2]
    change = (best - images).flatten(2)
    gets = _window(images, side, uniform[:, :2]).expand(-1, channels, -1)
    gives = _window(images, side, uniform[:, 2:4]).expand(-1, channels, -1)
    old = change.gather(2, gets)
    emptied = change.scatter(2, gets, 0).scatter_(2, gives, 0)

    used = change.square().sum((1, 2))
    left = (epsilon**2 - used).clamp_(min=0) / channels + used - emptied.square().sum((1, 2))
    bump = _turned(side, uniform[:, 4].view(-1, 1, 1, 1), images.device).flatten(2)
    new = bump * _signs(uniform[:, -channels:, None])
    new = new + old / (torch.linalg.vector_norm(old, dim=2, keepdim=True) + TINY)
    new = new / (torch.linalg.vector_norm(new, dim=2, keepdim=True) + TINY)
    new = new * left.clamp_(min=0).sqrt().view(-1, 1, 1)

    moved = emptied.scatter_(2, gets, new).view_as(images)
    candidates = (images + epsilon * unit(moved, "l2")).clamp_(0, 1)
    return torch.arange(count, device=images.device), candidates


@lru_cache(maxsize=64)
def bump(side: int) -> Tensor:
    """Return the change `(side, side)` of length 1 whose upper half rises and lower half falls.

    Each half is a sum of centred rectangles, ever larger and flatter (equation 2 of the paper).
    """
    upper = side // 2
    change = torch.cat([_hill(upper, side), -_hill(side - upper, side)])
    length: Tensor = torch.linalg.vector_norm(change)
    return change / length


def _hill(height: int, width: int) -> Tensor:
    """Return the rectangles' sum `(height, width)` of length 1: the k-th one weighs 1 / k²."""
    hill = torch.zeros(height, width)
    row, column = height // 2, width // 2
    for k in range(max(row, column) + 1):
        top, left = max(row - k, 0), max(column - k, 0)
        hill[top : row + k + 1, left : column + k + 1] += 1 / (k + 1) ** 2
    length: Tensor = torch.linalg.vector_norm(hill)
    return hill / (length + TINY)


def _turned(side: int, draw: Tensor, device: torch.device) -> Tensor:
    """Return the bump `(N, 1, side, side)`, on its side where `draw` `(N, 1, 1, 1)` is over 0.5."""
    upright = bump(side).to(device)
    return torch.where(draw > 0.5, upright.T, upright)


def _window(images: Tensor, side: int, uniform: Tensor) -> Tensor:
    """Return the flat pixel places `(N, 1, side²)` of one random window an image."""
    height, width = images.shape[-2:]
    top = (uniform[:, 0] * (height - side + 1)).long()
    left = (uniform[:, 1] * (width - side + 1)).long()
    steps = torch.arange(side, device=images.device)
    offsets = (steps[:, None] * width + steps).flatten()
    return (top * width + left).view(-1, 1, 1) + offsets


def _signs(uniform: Tensor) -> Tensor:
    """Return -1 or 1 with equal chances."""
    return torch.where(uniform < 0.5, -1.0, 1.0)
