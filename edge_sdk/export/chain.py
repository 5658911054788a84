"""Turn a chain of layers into a chain of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edge_sdk.errors import UnsupportedLayerError
from edge_sdk.export.blocks import (
    ActivationBlock,
    Block,
    ConvolutionBlock,
    LinearBlock,
    Norm,
    NormalizeBlock,
)
from edge_sdk.export.operators import AVERAGE_POOL, MAX_KERNEL, MAX_POOL, NO_POOL
from models.networks import Network, Normalize

Layers = Sequence[tuple[str, nn.Module]]
Shape = tuple[int, int, int]  # channels, height, width

SUPPORTED = (
    "Normalize as the first layer, Conv2d with an odd square kernel, stride 1 and as much padding "
    f"as keeps the size (kernel up to {MAX_KERNEL}), GroupNorm with as many groups as channels, "
    "ReLU, AvgPool2d and MaxPool2d of squares that do not overlap, Flatten and Linear"
)


def blocks_of(network: Network) -> list[Block]:
    """Return the blocks from images to logits; raises `UnsupportedLayerError` naming the layer."""
    spec = network.spec
    return blocks_of_layers(network.layers(), (spec.channels, spec.image_size, spec.image_size))


def blocks_of_layers(layers: Layers, shape: Shape) -> list[Block]:
    """Return the blocks of named layers for images of `shape`; errors as `blocks_of`."""
    blocks: list[Block] = []
    rest = list(layers)
    while rest:
        block, used, shape = _next_block(rest, shape, first=not blocks)
        if block is not None:
            blocks.append(block)
        rest = rest[used:]
    return blocks


def _next_block(layers: Layers, shape: Shape, *, first: bool) -> tuple[Block | None, int, Shape]:
    """Return the first block, how many layers it takes and the shape behind it."""
    name, layer = layers[0]
    following = layers[1][1] if len(layers) > 1 else None
    if isinstance(layer, Normalize) and first:
        return NormalizeBlock(layer.mean.flatten(), layer.std.flatten()), 1, shape
    if isinstance(layer, nn.Conv2d) and _keeps_size(layer):
        # The norm takes a bias out again.
        bias = layer.bias is not None and not _is_instance_norm(following)
        kernel = layer.kernel_size[0]
        block = ConvolutionBlock(name, layer.in_channels, layer.out_channels, kernel, bias=bias)
        return block, 1, (layer.out_channels, *shape[1:])
    if isinstance(layer, nn.Flatten) and isinstance(following, nn.Linear | nn.Flatten):
        return None, 1, shape
    if isinstance(layer, nn.Linear):
        outputs, bias = layer.out_features, layer.bias is not None
        return LinearBlock(name, shape, outputs, bias=bias), 1, (outputs, 1, 1)
    return _activation(layers, shape)


def _activation(layers: Layers, shape: Shape) -> tuple[Block, int, Shape]:
    """Return the longest run of norm, ReLU and pooling, in this order, as one block."""
    used, norm, relu, pool, size = 0, None, False, NO_POOL, 1
    name, layer = layers[used]
    if _is_instance_norm(layer):
        assert isinstance(layer, nn.GroupNorm)
        norm, used = Norm(name, layer.num_channels, layer.eps), 1
    if used < len(layers) and isinstance(layers[used][1], nn.ReLU):
        relu, used = True, used + 1
    if used < len(layers) and (found := _pool_size(layers[used][1], shape)):
        pool = MAX_POOL if isinstance(layers[used][1], nn.MaxPool2d) else AVERAGE_POOL
        size, used = found, used + 1
    if used == 0:
        raise UnsupportedLayerError(
            f"layer {name}, {layer}, has no training block; supported are: {SUPPORTED}"
        )
    shape = (shape[0], shape[1] // size, shape[2] // size)
    return ActivationBlock(norm=norm, relu=relu, pool=pool, pool_size=size), used, shape


def _keeps_size(layer: nn.Conv2d) -> bool:
    kernel = layer.kernel_size[0]
    same = (layer.kernel_size == (kernel, kernel)) and kernel % 2 == 1 and kernel <= MAX_KERNEL
    margin = kernel // 2
    padding = (0, 0) if layer.padding == "valid" else layer.padding
    return (
        same
        and layer.stride == (1, 1)
        and padding in ((margin, margin), "same")
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and (layer.padding_mode == "zeros" or margin == 0)
    )


def _is_instance_norm(layer: nn.Module | None) -> bool:
    return (
        isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels and layer.affine
    )


def _pool_size(layer: nn.Module, shape: Shape) -> int:
    """Return the side of the squares that `layer` pools, 0 where it is no such layer."""
    if not isinstance(layer, nn.AvgPool2d | nn.MaxPool2d):
        return 0
    size = _pair(layer.kernel_size)
    plain = size[0] == size[1] and _pair(layer.stride) == size and _pair(layer.padding) == (0, 0)
    if isinstance(layer, nn.AvgPool2d):
        plain = plain and layer.divisor_override is None
    else:
        plain = plain and _pair(layer.dilation) == (1, 1) and not layer.return_indices
    fits = min(shape[1:]) >= size[0] and size[0] <= 64
    whole = not layer.ceil_mode or all(side % size[0] == 0 for side in shape[1:])
    return size[0] if plain and fits and whole else 0


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
