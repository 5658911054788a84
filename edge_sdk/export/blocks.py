"""Layers as forward and backward passes made of operations that XNNPACK takes.

Activations are NHWC. A block's `forward` returns what its `backward` needs beside its result; the
backward pass is written by hand because XNNPACK has no kernels for autograd's. Only pad, slice,
concatenate, view, permute, batch matrix product and element-wise operations occur: an addmm or a
native convolution would fall back to kernels a hundred times slower.
"""

# ruff: noqa: ARG002 - a block uses what it needs of the signature that all share

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edge_sdk.runtime.program_file import Form

Saved = Any
Gradients = dict[str, Tensor]
BIG = 1e30  # turns any positive activation into at least 1, so that a clamp makes it a mask


class Block(ABC):
    """One layer, or a short run of layers that is cheaper together."""

    @property
    def forms(self) -> dict[str, Form]:
        """The parameters that the program takes, and the form in which it takes each."""
        return {}

    @abstractmethod
    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Return the result and what `backward` needs."""

    @abstractmethod
    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Return the gradients with respect to the input and to each parameter, by name."""


def _vector(size: int) -> Form:
    return Form(view=(size,), axes=(0,), shape=(size,))


class NormalizeBlock(Block):
    """`(x - mean) / std` for each channel. It is the first layer, so nothing lies behind it."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.scale = (1 / std.double()).float().view(1, 1, 1, -1)
        self.shift = (-mean.double() / std.double()).float().view(1, 1, 1, -1)

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Map pixels to zero mean and unit deviation."""
        return x * self.scale + self.shift, None

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Scale the gradient."""
        return dy * self.scale, {}


class Conv3x3Block(Block):
    """3x3 convolution, stride 1, padding 1, as a matrix product with the shifted images.

    The weight's program form is (output, ky * kx * input). With `bias=False` the layer's bias is
    left out because an instance norm behind it cancels it.
    """

    def __init__(self, name: str, inputs: int, outputs: int, *, bias: bool) -> None:
        self.weight, self.bias = f"{name}.weight", f"{name}.bias" if bias else None
        self.inputs, self.outputs = inputs, outputs

    @property
    def forms(self) -> dict[str, Form]:
        """The weight, and the bias if there is one."""
        i, o = self.inputs, self.outputs
        forms = {self.weight: Form(view=(o, i, 3, 3), axes=(0, 2, 3, 1), shape=(o, 9 * i))}
        return forms | ({self.bias: _vector(o)} if self.bias else {})

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Convolve `(B, H, W, C)`."""
        b, h, w, _ = x.shape
        columns = _columns(x, reverse=False)
        weight = values[self.weight].view(1, self.outputs, 9 * self.inputs)
        z = torch.bmm(columns, weight.permute(0, 2, 1)).view(b, h, w, self.outputs)
        if self.bias is not None:
            z = z + values[self.bias].view(1, 1, 1, -1)
        return z, columns

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Correlate with the saved columns, and convolve back with the taps reversed.

        A layer with few inputs, as the first of an attack, multiplies before it shifts: that
        moves 9 * inputs values a pixel instead of 9 * outputs.
        """
        b, h, w, _ = dy.shape
        rows = dy.view(1, b * h * w, self.outputs)
        gradients = {self.weight: torch.bmm(rows.permute(0, 2, 1), saved).view(self.outputs, -1)}
        if self.bias is not None:
            gradients[self.bias] = torch.bmm(torch.ones(1, 1, b * h * w), rows).view(-1)
        if 9 * self.inputs < self.outputs:
            weight = values[self.weight].view(1, self.outputs, 9 * self.inputs)
            return _add_shifted(torch.bmm(rows, weight).view(b, h, w, 9 * self.inputs)), gradients
        taps = values[self.weight].view(self.outputs, 9, self.inputs).permute(1, 0, 2)
        back = taps.reshape(1, 9 * self.outputs, self.inputs)
        dx = torch.bmm(_columns(dy, reverse=True), back)
        return dx.view(b, h, w, self.inputs), gradients


def _columns(x: Tensor, *, reverse: bool) -> Tensor:
    """Return the nine shifted images side by side, `(1, B * H * W, 9 * C)` in (ky, kx, C) order."""
    b, h, w, c = x.shape
    shifts = (2, 1, 0) if reverse else (0, 1, 2)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    wide = torch.cat([padded[:, :, k : k + w] for k in shifts], dim=3)
    return torch.cat([wide[:, k : k + h] for k in shifts], dim=3).view(1, b * h * w, 9 * c)


def _add_shifted(columns: Tensor) -> Tensor:
    """Return the transpose of `_columns`: nine images side by side, shifted back and added."""
    _, h, w, width = columns.shape
    c = width // 9
    padded = torch.nn.functional.pad(columns, (0, 0, 1, 1, 1, 1))
    parts = [
        padded[:, 2 - y : 2 - y + h, 2 - x : 2 - x + w, (3 * y + x) * c : (3 * y + x + 1) * c]
        for y in range(3)
        for x in range(3)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class InstanceNormBlock(Block):
    """GroupNorm with as many groups as channels: each channel of each image for itself."""

    def __init__(self, name: str, channels: int, eps: float) -> None:
        self.scale, self.shift = f"{name}.weight", f"{name}.bias"
        self.channels, self.eps = channels, eps

    @property
    def forms(self) -> dict[str, Form]:
        """Scale and shift."""
        return {self.scale: _vector(self.channels), self.shift: _vector(self.channels)}

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Normalise over height and width, then scale and shift."""
        b, h, w, c = x.shape
        z = x.view(b, h * w, c)
        centred = z - _mean(z)
        inverse = torch.rsqrt(_mean(centred * centred) + self.eps)
        factor = inverse * values[self.scale].view(1, 1, c)
        y = centred * factor + values[self.shift].view(1, 1, c)
        return y.view(b, h, w, c), (centred, inverse, factor)

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Take the mean and the correlation with the input out of the gradient."""
        centred, inverse, factor = saved
        b, h, w, c = dy.shape
        d = dy.view(b, h * w, c)
        mean, correlation = _mean(d), _mean(d * centred)
        dx = (d - mean) * factor - centred * (factor * inverse * inverse * correlation)
        total = torch.full((1, 1, b), float(h * w))
        gradients = {
            self.scale: torch.bmm(total, (correlation * inverse).view(1, b, c)).view(c),
            self.shift: torch.bmm(total, mean.view(1, b, c)).view(c),
        }
        return dx.view(b, h, w, c), gradients


def _mean(x: Tensor) -> Tensor:
    """Return the mean over pixels of `(B, P, C)`; a matrix product is twice as fast as mean.dim."""
    b, pixels, _ = x.shape
    return torch.bmm(torch.full((b, 1, pixels), 1 / pixels), x)


class ReluBlock(Block):
    """max(x, 0)."""

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Clip at zero."""
        y = torch.relu(x)
        return y, y

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Pass the gradient where the result was positive."""
        return dy * torch.clamp(saved * BIG, 0.0, 1.0), {}


class AvgPoolBlock(Block):
    """Mean of 2x2 pixels."""

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Halve height and width."""
        return _pool(x), None

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Give each of the four pixels a quarter."""
        return _spread(dy, torch.full((1, 1, 2, 1, 2, 1), 0.25)), {}


class ReluAvgPoolBlock(Block):
    """ReLU and 2x2 mean together: the backward pass writes the large gradient once, not twice."""

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Clip at zero, then halve height and width."""
        y = torch.relu(x)
        return _pool(y), y

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Give a quarter to each of the four pixels that were positive."""
        b, h, w, c = saved.shape
        mask = torch.clamp(saved * BIG, 0.0, 0.25)
        return _spread(dy, mask.view(b, h // 2, 2, w // 2, 2, c)), {}


def _pool(x: Tensor) -> Tensor:
    """Return the mean of 2x2 pixels from two sums of neighbours; XNNPACK slices have stride 1."""
    b, h, w, c = x.shape
    rows = x.view(b * h // 2, 2, w, c)
    pairs = (rows[:, 0:1] + rows[:, 1:2]).view(b * h // 2, w // 2, 2 * c)
    return ((pairs[:, :, :c] + pairs[:, :, c:]) * 0.25).view(b, h // 2, w // 2, c)


def _spread(dy: Tensor, factor: Tensor) -> Tensor:
    """Return each value of `(B, H, W, C)` on 2x2 pixels, times `(B, H, 2, W, 2, C)` factors."""
    b, h, w, c = dy.shape
    return (dy.view(b, h, 1, w, 1, c) * factor).view(b, 2 * h, 2 * w, c)


class FlattenLinearBlock(Block):
    """Flatten and a fully connected layer.

    The chain is NHWC while torch flattens NCHW, so the weight's columns are permuted: its program
    form is (classes, height * width * channels). Result `(1, B, classes)`.
    """

    def __init__(self, name: str, chw: tuple[int, int, int], outputs: int) -> None:
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"
        self.chw, self.features, self.outputs = chw, math.prod(chw), outputs

    @property
    def forms(self) -> dict[str, Form]:
        """The weight with its columns in NHWC order, and the bias."""
        shape = (self.outputs, self.features)
        weight = Form(view=(self.outputs, *self.chw), axes=(0, 2, 3, 1), shape=shape)
        return {self.weight: weight, self.bias: _vector(self.outputs)}

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Multiply the flattened images with the weight and add the bias."""
        rows = x.reshape(1, x.shape[0], self.features)
        weight = values[self.weight].view(1, -1, self.features)
        y = torch.bmm(rows, weight.permute(0, 2, 1)) + values[self.bias].view(1, 1, -1)
        return y, rows

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Outer products summed over the batch; the input's gradient is NHWC again."""
        b = dy.shape[1]
        c, h, w = self.chw
        gradients = {
            self.weight: torch.bmm(dy.permute(0, 2, 1), saved).view(-1, self.features),
            self.bias: torch.bmm(torch.ones(1, 1, b), dy).view(-1),
        }
        dx = torch.bmm(dy, values[self.weight].view(1, -1, self.features))
        return dx.view(b, h, w, c), gradients
