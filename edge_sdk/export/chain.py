"""Turn a network's layers into a chain of blocks."""

from __future__ import annotations

from torch import nn

from edge_sdk.errors import UnsupportedLayerError
from edge_sdk.export.blocks import (
    AvgPoolBlock,
    Block,
    Conv3x3Block,
    FlattenLinearBlock,
    InstanceNormBlock,
    NormalizeBlock,
    ReluAvgPoolBlock,
    ReluBlock,
)
from models.networks import Network, Normalize

SUPPORTED = (
    "Normalize as the first layer, Conv2d 3x3 with stride 1 and padding 1, GroupNorm with as many "
    "groups as channels, ReLU, AvgPool2d(2) on even sides, and at the end Flatten followed by "
    "Linear"
)


def blocks_of(network: Network) -> list[Block]:
    """Return the blocks from images to logits; raises `UnsupportedLayerError` naming the layer."""
    layers = network.layers()
    shape = (network.spec.channels, network.spec.image_size, network.spec.image_size)
    blocks: list[Block] = []
    index = 0
    while index < len(layers):
        name, layer = layers[index]
        following = layers[index + 1][1] if index + 1 < len(layers) else None
        last = index + 2 == len(layers)
        used = 1
        if isinstance(layer, Normalize) and index == 0:
            blocks.append(NormalizeBlock(layer.mean.flatten(), layer.std.flatten()))
        elif isinstance(layer, nn.Conv2d) and _is_supported_convolution(layer):
            cancelled = isinstance(following, nn.GroupNorm) and _is_instance_norm(following)
            bias = layer.bias is not None and not cancelled
            blocks.append(Conv3x3Block(name, layer.in_channels, layer.out_channels, bias=bias))
            shape = (layer.out_channels, *shape[1:])
        elif isinstance(layer, nn.GroupNorm) and _is_instance_norm(layer):
            blocks.append(InstanceNormBlock(name, layer.num_channels, layer.eps))
        elif isinstance(layer, nn.ReLU) and _halves(following, shape):
            blocks.append(ReluAvgPoolBlock())
            shape, used = (shape[0], shape[1] // 2, shape[2] // 2), 2
        elif isinstance(layer, nn.ReLU):
            blocks.append(ReluBlock())
        elif _halves(layer, shape):
            blocks.append(AvgPoolBlock())
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
        elif isinstance(layer, nn.Flatten) and isinstance(following, nn.Linear) and last:
            if following.bias is None:
                raise _unsupported(*layers[index + 1])
            blocks.append(FlattenLinearBlock(layers[index + 1][0], shape, following.out_features))
            used = 2
        else:
            raise _unsupported(name, layer)
        index += used
    return blocks


def _is_supported_convolution(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.padding == (1, 1)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )


def _is_instance_norm(layer: nn.GroupNorm) -> bool:
    return layer.num_groups == layer.num_channels and layer.affine


def _halves(layer: nn.Module | None, shape: tuple[int, ...]) -> bool:
    if not isinstance(layer, nn.AvgPool2d) or any(side % 2 for side in shape[1:]):
        return False
    pairs = (_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding))
    return pairs == ((2, 2), (2, 2), (0, 0)) and layer.divisor_override is None


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _unsupported(name: str, layer: nn.Module) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"layer {name}, {layer}, has no training block; supported are: {SUPPORTED}"
    )
