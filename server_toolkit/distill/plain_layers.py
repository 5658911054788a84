"""Every layer forward, with its *pull*: from the loss's gradient at its output back to its input.

Written out because autograd's kernels for small pools cost more here than the convolutions do.
Activations are `(N, S·C, H, W)` or `(N, S·F)`: S students side by side, each a group of channels
with weights of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d_with_indices

from models.layers import AveragePool, Convolution, InstanceNorm, Layer, Linear, MaxPool

# gradient at the output -> gradient at the input, and those of the weights, each `(S, ...)`
Pull = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
Weights = Sequence[Tensor]
NORM_EPSILON = 1e-5  # torch's default
LARGEST_CUT_POOL = 3

aten = torch.ops.aten


def plain_layer(
    layer: Layer,
    x: Tensor,
    w: Weights,
    students: int,
    product_dtype: torch.dtype | None,
    *,
    is_first: bool,
) -> tuple[Tensor, Pull]:
    """Return a layer's output at input `x`, and its pull.

    `w` holds the layer's weights, each `(S, ...)` in torch's shape. Products are taken in
    `product_dtype` where one is given. Behind the first layer nobody asks for a gradient: what a
    convolution's pull returns for it there is not one.
    """
    if isinstance(layer, Convolution):
        return _convolution(x, w, students, product_dtype, is_first=is_first)
    if isinstance(layer, Linear):
        return _linear(x, w, students, product_dtype)
    if isinstance(layer, InstanceNorm):
        return _instance_norm(x, w)
    if isinstance(layer, AveragePool):
        size = layer.size
        return average_pool(x, size), lambda g: (spread_average(g, x, size), [])
    if isinstance(layer, MaxPool):
        y, spread, _ = max_pool(x, layer.size)
        return y, lambda g: (spread(g), [])
    y = x.relu_()  # nobody else needs what an earlier layer returned
    return y, lambda g: (gate(g, y), [])


def _convolution(
    x: Tensor,
    w: Weights,
    students: int,
    product_dtype: torch.dtype | None,
    *,
    is_first: bool,
) -> tuple[Tensor, Pull]:
    dtype = x.dtype
    weight, bias = weight_and_bias([v.flatten(0, 1) for v in w], product_dtype)
    x = for_product(x, product_dtype)
    y = conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=students)

    def pull(g: Tensor) -> tuple[Tensor, list[Tensor]]:
        parts = [not is_first, True, bias is not None]
        g_x, *found = convolution_back(for_product(g, product_dtype), x, weight, students, parts)
        gradients = [found[index].view(v.shape).to(dtype) for index, v in enumerate(w)]
        return g if is_first else g_x.to(dtype), gradients

    return y.to(dtype), pull


def convolution_back(
    g: Tensor, x: Tensor, weight: Tensor, students: int, parts: Sequence[bool]
) -> list[Tensor]:
    """Return the gradients of input, weight and bias of a convolution, those that `parts` says."""
    margin = weight.shape[2] // 2
    sides = ([1, 1], [margin, margin], [1, 1], False, [0, 0], students)
    found: list[Tensor] = aten.convolution_backward(
        g, x, weight, [len(weight)], *sides, list(parts)
    )
    return found


def _linear(
    x: Tensor, w: Weights, students: int, product_dtype: torch.dtype | None
) -> tuple[Tensor, Pull]:
    shape, dtype = x.shape, x.dtype
    weight, bias = weight_and_bias(w, product_dtype)  # (S, outputs, F), (S, outputs)
    xs = for_product(grouped(x, students), product_dtype)
    y = xs @ weight.mT
    if bias is not None:
        y = y + bias[:, None]

    def pull(g: Tensor) -> tuple[Tensor, list[Tensor]]:
        gs = for_product(grouped(g, students), product_dtype)
        gradients = [gs.mT @ xs, gs.sum(dim=1)][: len(w)]
        g_x = side_by_side(gs @ weight).reshape(shape)
        return g_x.to(dtype), [v.to(dtype) for v in gradients]

    return side_by_side(y).to(dtype), pull


def _instance_norm(x: Tensor, w: Weights) -> tuple[Tensor, Pull]:
    count, channels, height, width = x.shape
    sizes = (count, channels, height * width, channels)
    gamma, beta = (v.flatten() for v in w)
    y, mean, rstd = torch.native_group_norm(x, gamma, beta, *sizes, NORM_EPSILON)

    def pull(g: Tensor) -> tuple[Tensor, list[Tensor]]:
        g_x, *found = aten.native_group_norm_backward(
            g, x, mean, rstd, gamma, *sizes, [True, True, True]
        )
        return g_x, [v.view(w[0].shape) for v in found]

    return y, pull


def gate(g: Tensor, x: Tensor) -> Tensor:
    """Return `g` where `x` is above 0, and 0 elsewhere."""
    kept: Tensor = aten.threshold_backward(g, x, 0)
    return kept


def average_pool(x: Tensor, size: int) -> Tensor:
    """Return the mean of every square of `size` pixels; what is left over of a side is dropped.

    Small squares as the sum of cuts through all of them, which is several times as fast on the CPU.
    """
    if size > LARGEST_CUT_POOL:
        return avg_pool2d(x, size)
    first, *rest = _cuts(x, size)
    total = first + rest[0]
    for cut in rest[1:]:
        total += cut
    return total.mul_(1 / size**2)


def spread_average(g: Tensor, x: Tensor, size: int) -> Tensor:
    """Return the gradient at `x` for gradient `g` at its average pool."""
    if size > LARGEST_CUT_POOL:
        sides = [size, size]
        back: Tensor = aten.avg_pool2d_backward(g, x, sides, sides, [0, 0], False, True, None)
        return back
    covered = x.shape[2] % size == 0 and x.shape[3] % size == 0
    spread = torch.empty_like(x) if covered else torch.zeros_like(x)
    share = g * (1 / size**2)
    for cut in _cuts(spread, size):
        cut.copy_(share)
    return spread


def _cuts(x: Tensor, size: int) -> list[Tensor]:
    """Return views of the first pixels of all squares, of the second ones, and so on."""
    height, width = (side // size * size for side in x.shape[2:])
    return [
        x[:, :, row:height:size, column:width:size] for row in range(size) for column in range(size)
    ]


def max_pool(x: Tensor, size: int) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
    """Return the largest pixel of every square, what spreads a gradient back, and their places."""
    sides = [size, size]
    y, chosen = max_pool2d_with_indices(x, sides)

    def spread(g: Tensor) -> Tensor:
        back: Tensor = aten.max_pool2d_with_indices_backward(
            g, x, sides, sides, [0, 0], [1, 1], False, chosen
        )
        return back

    return y, spread, chosen


def for_product(v: Tensor, product_dtype: torch.dtype | None) -> Tensor:
    """Return `v` in the type that products are taken in."""
    return v if product_dtype is None else v.to(product_dtype)


def weight_and_bias(w: Weights, product_dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    """Return both in the type that products are taken in."""
    weight, *bias = (for_product(v, product_dtype) for v in w)
    return weight, bias[0] if bias else None


def grouped(v: Tensor, students: int) -> Tensor:
    """Map `(N, S·F, ...)` to `(S, N, features)`."""
    return v.reshape(len(v), students, -1).transpose(0, 1)


def side_by_side(v: Tensor) -> Tensor:
    """Map `(S, N, F)` to `(N, S·F)`."""
    return v.transpose(0, 1).flatten(1)
