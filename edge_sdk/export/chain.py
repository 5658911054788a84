"""Turn a chain of layers into a chain of blocks."""

from __future__ import annotations

import math
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
from edge_sdk.export.operators import AVERAGE_POOL, MAX_POOL, NO_POOL
from edge_sdk.export.supported import judge
from models.layers import Shape
from models.networks import Network, Normalize

Layers = Sequence[tuple[str, nn.Module]]


def blocks_of(network: Network) -> list[Block]:
    """Return the blocks from images to logits; raises `UnsupportedLayerError` naming the layer."""
    spec = network.spec
    return blocks_of_layers(network.layers(), (spec.channels, spec.image_size, spec.image_size))


def blocks_of_layers(layers: Layers, shape: Shape) -> list[Block]:
    """Return the blocks of named layers for images of `shape`; errors as `blocks_of`."""
    return [block for block, _ in blocks_and_layers(layers, shape)]


def blocks_and_layers(layers: Layers, shape: Shape) -> list[tuple[Block, list[str]]]:
    """Return each block with the names of its layers; errors as `blocks_of`.

    `shape` is (channels, height, width).
    """
    require_supported(layers, shape)
    found: list[tuple[Block, list[str]]] = []
    pixels = (shape[0], shape[1], shape[2])  # flattening is left to the next linear layer
    rest = list(layers)
    while rest:
        name, layer = rest[0]
        following = rest[1][1] if len(rest) > 1 else None
        used = 1
        if isinstance(layer, Normalize):
            found.append((NormalizeBlock(layer.mean.flatten(), layer.std.flatten()), [name]))
        elif isinstance(layer, nn.Conv2d):
            # The norm takes a bias out again.
            bias = layer.bias is not None and not isinstance(following, nn.GroupNorm)
            inputs, outputs = layer.in_channels, layer.out_channels
            block = ConvolutionBlock(name, inputs, outputs, layer.kernel_size[0], bias=bias)
            found.append((block, [name]))
            pixels = (outputs, *pixels[1:])
        elif isinstance(layer, nn.Linear):
            outputs, bias = layer.out_features, layer.bias is not None
            found.append((LinearBlock(name, pixels, outputs, bias=bias), [name]))
            pixels = (outputs, 1, 1)
        elif not isinstance(layer, nn.Flatten):
            activation, used = _activation(rest)
            found.append((activation, [n for n, _ in rest[:used]]))
            size = activation.pool_size
            pixels = (pixels[0], pixels[1] // size, pixels[2] // size)
        rest = rest[used:]
    return found


def require_supported(layers: Layers, shape: Shape) -> None:
    """Raise `UnsupportedLayerError` for the first layer that has no block, with what to do."""
    for index, (name, layer) in enumerate(layers):
        verdict = judge(layer, shape, first=index == 0)
        if verdict.problem:
            raise UnsupportedLayerError(
                f"layer {name}, {layer}, has no training block: {verdict.problem}; {verdict.advice}"
            )
        shape = shape_behind(layer, shape)
    if not layers or not isinstance(layers[-1][1], nn.Linear):
        raise UnsupportedLayerError("the last layer must be Linear, with an output for each class")


def shape_behind(layer: nn.Module, shape: Shape) -> Shape:
    """Return what a supported layer makes of `shape`."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, *shape[1:]
    if isinstance(layer, nn.Linear):
        return (layer.out_features,)
    if isinstance(layer, nn.Flatten):
        return (math.prod(shape),)
    if isinstance(layer, nn.AvgPool2d | nn.MaxPool2d):
        size = _size(layer)
        return shape[0], shape[1] // size, shape[2] // size
    return shape


def _activation(layers: Layers) -> tuple[ActivationBlock, int]:
    """Return the longest run of norm, ReLU and pooling, in this order, and how many they are."""
    used, norm, relu, pool, size = 0, None, False, NO_POOL, 1
    name, layer = layers[0]
    if isinstance(layer, nn.GroupNorm):
        norm, used = Norm(name, layer.num_channels, layer.eps), 1
    if used < len(layers) and isinstance(layers[used][1], nn.ReLU):
        relu, used = True, used + 1
    if used < len(layers):
        layer = layers[used][1]
        if isinstance(layer, nn.AvgPool2d | nn.MaxPool2d):
            pool = MAX_POOL if isinstance(layer, nn.MaxPool2d) else AVERAGE_POOL
            size, used = _size(layer), used + 1
    return ActivationBlock(norm=norm, relu=relu, pool=pool, pool_size=size), used


def _size(pool: nn.AvgPool2d | nn.MaxPool2d) -> int:
    size = pool.kernel_size
    return size if isinstance(size, int) else size[0]
