"""Simulated int8 in torch: what the runtime's quantized operators must compute."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Range = npt.NDArray[np.float32] | None


def round_layers(network: nn.Module, ranges: Mapping[str, Range]) -> None:
    """Let the named layers round their weight and, within their range, their input.

    The names are those of `ProgramFile.ranges`, a layer's name and `.range`; without a range the
    input stays as it is. The network is changed in place.
    """
    for name, found in ranges.items():
        layer = network.get_submodule(name.removesuffix(".range"))
        layer.forward = functools.partial(_forward, layer, found)


def _forward(layer: nn.Module, found: Range, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if found is not None:
        x = round_activations(x, found)
    weight = layer.weight + (round_weight(layer.weight.detach()) - layer.weight).detach()
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return nn.functional.conv2d(x, weight, layer.bias, padding=layer.padding)


def round_weight(weight: Tensor) -> Tensor:
    """Return the weight in 255 steps an output channel; in float32 as on the device."""
    rows = weight.float()
    largest = rows.abs().amax(dim=tuple(range(1, rows.dim())), keepdim=True)
    step = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return ((rows * (1 / step)).clamp(-127, 127).round() * step).to(weight.dtype)


def round_activations(x: Tensor, found: npt.NDArray[np.float32]) -> Tensor:
    """Return `x` on the 256 values of a range that holds zero, straight-through (Jacob et al.)."""
    low, high = min(float(found[0]), 0.0), max(float(found[1]), 0.0)
    step = (high - low) / 255 or 1.0
    zero = min(127.0, max(-128.0, -128 - round(low / step)))
    scaled = x / step + zero
    inside = (scaled >= -128.5) & (scaled < 127.5)
    nearest = (scaled.clamp(-128, 127).round() - zero) * step
    return torch.where(inside, x + (nearest - x).detach(), nearest.detach())
