"""Layers as forward and backward passes made of the runtime's own operators.

Activations are NHWC, or `(B, features)` behind a fully connected layer. A block's `forward` returns
what its `backward` needs beside its result; the backward pass is written by hand because a program
holds no autograd. `operators.py` lists the operators.
"""

# ruff: noqa: ARG002 - a block uses what it needs of the signature that all share

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edge_sdk.export import operators
from edge_sdk.runtime.program_file import Form

Saved = Any
Gradients = dict[str, Tensor]

_trajsyn = torch.ops.trajsyn


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
    """`(x - mean) / std` for each channel."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.scale = (1 / std.double()).float()
        self.shift = (-mean.double() / std.double()).float()

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Map pixels to zero mean and unit deviation."""
        return _trajsyn.scale_shift(x, self.scale, self.shift), None

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Scale the gradient."""
        return _trajsyn.scale_shift(dy, self.scale, torch.zeros_like(self.shift)), {}


class WeightBlock(Block):
    """A layer that multiplies with a weight: `kernel` is the side of a convolution's, or 0."""

    def __init__(self, name: str, kernel: int, *, bias: bool) -> None:
        self.name, self.kernel = name, kernel
        self.weight, self.bias = f"{name}.weight", f"{name}.bias" if bias else None

    @abstractmethod
    def sides(self, dy: Tensor) -> tuple[int, int]:
        """Return the input's height and width, given the result's gradient."""

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Multiply with the weight and add the bias."""
        bias = values[self.bias] if self.bias else None
        z, padded, _ = _trajsyn.convolution(x, values[self.weight], bias, self.kernel)
        return z, padded

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Correlate with the padded input, and multiply back."""
        dx, _, _ = _trajsyn.convolution_input_gradient(
            dy, values[self.weight], self.kernel, *self.sides(dy)
        )
        return dx, self.gradients(dy, saved)

    def gradients(self, dy: Tensor, padded: Tensor) -> Gradients:
        """Return the gradients of weight and bias."""
        found = {self.weight: _trajsyn.convolution_weight_gradient(padded, dy, self.kernel)}
        return found | ({self.bias: _trajsyn.bias_gradient(dy)} if self.bias else {})


class ConvolutionBlock(WeightBlock):
    """Convolution of `(B, H, W, C)` with an odd square kernel, stride 1 and "same" padding.

    The weight's program form is (ky * kx * input, output). With `bias=False` the layer's bias is
    left out, because there is none or an instance norm behind it cancels it.
    """

    def __init__(self, name: str, inputs: int, outputs: int, kernel: int, *, bias: bool) -> None:
        super().__init__(name, kernel, bias=bias)
        self.inputs, self.outputs = inputs, outputs

    @property
    def forms(self) -> dict[str, Form]:
        """The weight, and the bias if there is one."""
        i, o, k = self.inputs, self.outputs, self.kernel
        forms = {self.weight: Form(view=(o, i, k, k), axes=(2, 3, 1, 0), shape=(k * k * i, o))}
        return forms | ({self.bias: _vector(o)} if self.bias else {})

    def sides(self, dy: Tensor) -> tuple[int, int]:
        """Return the result's, which padding keeps."""
        return dy.shape[1], dy.shape[2]


class LinearBlock(WeightBlock):
    """Flatten and a fully connected layer, `(B, H, W, C)` or `(B, features)` to `(B, outputs)`.

    The chain is NHWC while torch flattens NCHW, so the weight's rows are permuted: its program form
    is (height * width * channels, outputs).
    """

    def __init__(
        self, name: str, chw: tuple[int, int, int], outputs: int, *, bias: bool = True
    ) -> None:
        super().__init__(name, 0, bias=bias)
        self.chw, self.outputs = chw, outputs

    @property
    def forms(self) -> dict[str, Form]:
        """The weight with its rows in NHWC order, and the bias if there is one."""
        shape = (math.prod(self.chw), self.outputs)
        weight = Form(view=(self.outputs, *self.chw), axes=(2, 3, 1, 0), shape=shape)
        return {self.weight: weight} | ({self.bias: _vector(self.outputs)} if self.bias else {})

    def sides(self, dy: Tensor) -> tuple[int, int]:
        """Return those of the images that were flattened."""
        return self.chw[1], self.chw[2]


class QuantizedBlock(Block):
    """A layer with a weight that computes with int8 values (Jacob et al. 2018), in float32.

    The input is rounded to 256 values within `range`, the weight to 255 an output channel, by its
    largest entry. Gradients pass straight through the rounding, and not through values beyond the
    range. While `range` is empty (its first number the larger), the input stays as it is. The
    input's least and largest value in each image are a result, for whoever keeps the range.
    """

    def __init__(self, layer: WeightBlock) -> None:
        self.layer, self.range = layer, f"{layer.name}.range"

    @property
    def forms(self) -> dict[str, Form]:
        """The layer's."""
        return self.layer.forms

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Round, then multiply with the weight and add the bias."""
        layer = self.layer
        bias = values[layer.bias] if layer.bias else None
        z, padded, _, observed, steps = _trajsyn.quantized_convolution(
            x, values[layer.weight], bias, layer.kernel, values[self.range]
        )
        return z, (x, padded, observed, steps)

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Correlate with the rounded input, and multiply back with the rounded weight."""
        x, padded, _, steps = saved
        weight, sides = values[self.layer.weight], self.layer.sides(dy)
        dx, _, _ = _trajsyn.quantized_convolution_input_gradient(
            dy, weight, self.layer.kernel, *sides, x, values[self.range], steps
        )
        return dx, self.layer.gradients(dy, padded)

    def observed(self, saved: Saved) -> Tensor:
        """Return the least and largest input of each image, `(B, 2)`."""
        found: Tensor = saved[2]
        return found


class Int8ConvolutionBlock(QuantizedBlock):
    """A convolution whose three products are taken in int8 arithmetic, int8 x int8 to int32.

    The forward product is `QuantizedBlock`'s, whose rounding it shares. The gradient that comes in
    is rounded too, stochastically, so that its expectation stays (Gupta et al. 2015): with a step
    for each output channel for the weight's gradient, for each image for the input's. An empty
    range is the batch's own here.
    """

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Round, multiply in int8, scale."""
        layer = self.layer
        bias = values[layer.bias] if layer.bias else None
        z, _, planes, _, _, observed, used, steps, _ = _trajsyn.int8_convolution(
            x, values[layer.weight], bias, layer.kernel, values[self.range]
        )
        return z, (x, planes, observed, used, steps)

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Round the gradient, multiply in int8, scale."""
        x, planes, _, used, steps = saved
        layer = self.layer
        weight = values[layer.weight]
        dx = _trajsyn.int8_input_gradient(dy, weight, layer.kernel, x, used, steps)[0]
        dweight = _trajsyn.int8_weight_gradient(dy, planes, used, layer.kernel, x.shape[-1])[0]
        gradients = {layer.weight: dweight}
        return dx, gradients | ({layer.bias: _trajsyn.bias_gradient(dy)} if layer.bias else {})


def quantized(blocks: Sequence[Block], *, int8_arithmetic: bool = False) -> list[Block]:
    """Return the chain with int8 values in every layer that has a weight.

    With `int8_arithmetic` the convolutions that gain from it compute in int8: rounding costs more
    than it saves where there are few input channels.
    """

    def of(layer: WeightBlock) -> Block:
        gains = (
            isinstance(layer, ConvolutionBlock)
            and layer.inputs >= 16
            and layer.inputs % 4 == layer.outputs % 4 == 0
        )
        return Int8ConvolutionBlock(layer) if int8_arithmetic and gains else QuantizedBlock(layer)

    return [of(b) if isinstance(b, WeightBlock) else b for b in blocks]


@dataclass(frozen=True)
class Norm:
    """An instance norm: GroupNorm with as many groups as channels, with its parameters' names."""

    name: str
    channels: int
    epsilon: float

    @property
    def scale(self) -> str:
        """Name of the factors."""
        return f"{self.name}.weight"

    @property
    def shift(self) -> str:
        """Name of the offsets."""
        return f"{self.name}.bias"


class ActivationBlock(Block):
    """Instance norm, ReLU and pooling in this order, any of which may be missing.

    Together because each is one pass over memory and they share it. Pooling takes squares of
    `pool_size` pixels that do not overlap; rows and columns that are left over are dropped.
    """

    def __init__(
        self,
        *,
        norm: Norm | None = None,
        relu: bool = False,
        pool: int = operators.NO_POOL,
        pool_size: int = 1,
    ) -> None:
        self.norm, self.relu, self.pool, self.pool_size = norm, relu, pool, pool_size

    @property
    def forms(self) -> dict[str, Form]:
        """Scale and shift of the norm."""
        if self.norm is None:
            return {}
        vector = _vector(self.norm.channels)
        return {self.norm.scale: vector, self.norm.shift: vector}

    def forward(self, x: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Saved]:
        """Normalise, clip at zero and pool."""
        epsilon = self.norm.epsilon if self.norm else 0.0
        rest = (self.relu, self.pool, self.pool_size)
        y, statistics = _trajsyn.activation(x, *self._norm(values), epsilon, *rest)
        return y, (x, statistics)

    def backward(
        self, dy: Tensor, saved: Saved, values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Gradients]:
        """Through pooling and ReLU, then take mean and correlation out of the gradient."""
        x, statistics = saved
        rest = (self.relu, self.pool, self.pool_size)
        dx, dscale, dshift, _ = _trajsyn.activation_backward(
            dy, x, statistics, *self._norm(values), *rest
        )
        return dx, {self.norm.scale: dscale, self.norm.shift: dshift} if self.norm else {}

    def _norm(self, values: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        if self.norm is None:
            return None, None
        return values[self.norm.scale], values[self.norm.shift]
