"""Average pooling of 2x2 pixels as whole-tensor operations: torch's own is slow on CPUs."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def use_fast_pooling(network: nn.Module) -> None:
    """Replace every 2x2 `nn.AvgPool2d` inside `network`, in place.

    Values and gradients keep every bit, so this is for training and attacks on CPUs, about four
    times as fast there. What is exported to a file should keep torch's own layer.
    """
    for parent in network.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AvgPool2d) and _is_plain(child):
                setattr(parent, name, FastAveragePool2d())


def _is_plain(pool: nn.AvgPool2d) -> bool:
    """Say whether this is `nn.AvgPool2d(2)` and nothing else."""
    options = (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.divisor_override)
    return options == (2, 2, 0, False, None)


class FastAveragePool2d(nn.Module):
    """`nn.AvgPool2d(2)`: `(N, C, H, W)` to `(N, C, H // 2, W // 2)`; an odd last line is left."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of every 2x2 window."""
        return cast(Tensor, _Pool.apply(images))  # type: ignore[no-untyped-call]


class _Pool(torch.autograd.Function):
    """The mean of 2x2 windows; linear, so that its backward and `_Spread`'s are each other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
        # The order in which torch adds them: the sums round alike.
        total = images[..., 0:height:2, 0:width:2] + images[..., 0:height:2, 1:width:2]
        total += images[..., 1:height:2, 0:width:2]
        total += images[..., 1:height:2, 1:width:2]
        return total.mul_(0.25)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], _output: Tensor) -> None:
        ctx.side = tuple(inputs[0].shape[-2:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Spread.apply(gradient, *ctx.side)  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    """A quarter of every value on each pixel of its 2x2 window."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, height: int, width: int) -> Tensor:
        quarter = values * 0.25
        even_height, even_width = height // 2 * 2, width // 2 * 2
        new = values.new_empty if (height, width) == (even_height, even_width) else values.new_zeros
        spread = new((*values.shape[:-2], height, width))
        for row in range(2):
            for column in range(2):
                spread[..., row:even_height:2, column:even_width:2] = quarter
        return spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:
        return _Pool.apply(gradient), None, None  # type: ignore[no-untyped-call]
