"""Many networks of one architecture in one: their parameters stacked, each with images of its own.

A convolution over the stack is one grouped convolution, a linear layer one batched matrix product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from models import ModelSpec, layout_of
from models.layers import AveragePool, Convolution, InstanceNorm, Layer, Linear, MaxPool


class StackedNetwork:
    """The forward pass of `models.networks.Network` for a stack of parameters."""

    def __init__(self, spec: ModelSpec, *, device: str) -> None:
        self.shapes = [p.shape for p in layout_of(spec).parameters]
        self._layers: list[tuple[Layer, int, bool]] = []
        kinds = [layer for _, layer, _, _ in spec.shapes()]
        index = 0
        for layer, behind in zip(kinds, [*kinds[1:], None], strict=True):
            # A norm takes away what a bias before it adds: the agent's program leaves it out too.
            uses_bias = getattr(layer, "bias", True) and not isinstance(behind, InstanceNorm)
            self._layers.append((layer, index, uses_bias))
            if isinstance(layer, InstanceNorm):
                index += 2
            elif isinstance(layer, Convolution | Linear):
                index += 1 + layer.bias
        self._mean = torch.tensor(spec.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(spec.std, device=device).view(-1, 1, 1)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views `(S, *shape)` into `flat` `(S, size)`, in layout order."""
        parts = torch.split(flat, [math.prod(shape) for shape in self.shapes], dim=1)
        return [p.reshape(len(flat), *s) for p, s in zip(parts, self.shapes, strict=True)]

    def logits(self, parameters: list[Tensor], images: Tensor) -> Tensor:
        """Map `(N, S, C, H, W)` in [0, 1] to `(N, S, classes)`, network s on its own images."""
        count, stack = images.shape[:2]
        x = ((images - self._mean) / self._std).flatten(1, 2)
        for layer, index, uses_bias in self._layers:
            if isinstance(layer, Convolution):
                weight = parameters[index].flatten(0, 1)
                bias = parameters[index + 1].flatten() if uses_bias else None
                x = functional.conv2d(x, weight, bias, padding=layer.kernel // 2, groups=stack)
            elif isinstance(layer, InstanceNorm):
                scale, shift = (parameters[index + i].flatten() for i in range(2))
                x = functional.group_norm(x, x.shape[1], scale, shift)
            elif isinstance(layer, AveragePool):
                x = functional.avg_pool2d(x, layer.size)
            elif isinstance(layer, MaxPool):
                x = functional.max_pool2d(x, layer.size)
            elif isinstance(layer, Linear):
                rows = x.reshape(count, stack, -1).transpose(0, 1)
                x = torch.bmm(rows, parameters[index].transpose(1, 2))
                if uses_bias:
                    x = x + parameters[index + 1][:, None]
                x = x.transpose(0, 1)
            else:
                x = functional.relu(x)
        return x
