"""Every architecture as a chain of named layers, from normalised images to the classifier."""

from __future__ import annotations

from collections.abc import Sequence

from models.layers import AveragePool, Convolution, InstanceNorm, Layer, MaxPool, ReLU, name_of

Chain = tuple[tuple[str, Layer], ...]

ALEXNET_CONVOLUTIONS = (  # (output channels, kernel side), Cazenavette et al. 2022, networks file
    (128, 5),
    (192, 5),
    (256, 3),
    (192, 3),
    (192, 3),
)
ALEXNET_POOLS = (0, 1, 4)  # behind these convolutions


def convnet(width: int, depth: int) -> Chain:
    """3x3 convolution, instance norm, ReLU, 2x2 average pool, `depth` times (Gidaris & Komodakis).

    As the dataset-distillation literature uses it.
    """
    chain: list[tuple[str, Layer]] = []
    for block in range(depth):
        chain += [
            (f"conv{block}", Convolution(outputs=width, kernel=3)),
            (f"norm{block}", InstanceNorm()),
            (f"relu{block}", ReLU()),
            (f"pool{block}", AveragePool(size=2)),
        ]
    return tuple(chain)


def alexnet() -> Chain:
    """AlexNet for small images (Cazenavette et al. 2022)."""
    chain: list[tuple[str, Layer]] = []
    for index, (outputs, kernel) in enumerate(ALEXNET_CONVOLUTIONS):
        chain.append((f"conv{index}", Convolution(outputs=outputs, kernel=kernel)))
        chain.append((f"relu{index}", ReLU()))
        if index in ALEXNET_POOLS:
            chain.append((f"pool{index}", MaxPool(size=2)))
    return tuple(chain)


def numbered(layers: Sequence[Layer]) -> Chain:
    """Name each layer by its kind and its place in the chain: conv0, relu1, maxpool2 ..."""
    return tuple((f"{name_of(layer)}{index}", layer) for index, layer in enumerate(layers))
