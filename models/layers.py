"""The layers that a chain may hold, strictly read, and the shapes that they give.

They come from the network in signed tasks, so that every number is bounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_KERNEL, MAX_POOL = 15, 64
MAX_CHANNELS, MAX_FEATURES = 4096, 16_384

Shape = tuple[int, ...]  # (channels, height, width), or (features,) behind a linear layer


class SpecError(ValueError):
    """A model description that no network can be built from."""


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """Square convolution with an odd kernel, stride 1, padded so that the size stays."""

    outputs: int
    kernel: int
    bias: bool = True

    def __post_init__(self) -> None:
        _require_integer(self, "outputs", 1, MAX_CHANNELS)
        _require_integer(self, "kernel", 1, MAX_KERNEL)
        _require_flag(self, "bias")
        if self.kernel % 2 == 0:
            raise SpecError(f"conv: kernel is {self.kernel}; it must be odd")


@dataclass(frozen=True, kw_only=True)
class InstanceNorm:
    """Each channel of each image to mean 0 and deviation 1, then a learned scale and shift."""


@dataclass(frozen=True, kw_only=True)
class ReLU:
    """Zero in place of what is negative."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """One number for each square of `size` pixels; what is left over of the sides is dropped."""

    size: int

    def __post_init__(self) -> None:
        _require_integer(self, "size", 2, MAX_POOL)


@dataclass(frozen=True, kw_only=True)
class AveragePool(Pool):
    """The mean of each square."""


@dataclass(frozen=True, kw_only=True)
class MaxPool(Pool):
    """The largest number of each square; of equals the first takes the gradient, as in torch."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A fully connected layer; the first one flattens the images."""

    outputs: int
    bias: bool = True

    def __post_init__(self) -> None:
        _require_integer(self, "outputs", 1, MAX_FEATURES)
        _require_flag(self, "bias")


Layer = Convolution | InstanceNorm | ReLU | AveragePool | MaxPool | Linear

LAYERS: Mapping[str, type[Layer]] = {
    "conv": Convolution,
    "norm": InstanceNorm,
    "relu": ReLU,
    "avgpool": AveragePool,
    "maxpool": MaxPool,
    "linear": Linear,
}
_NAMES = {layer: name for name, layer in LAYERS.items()}


def name_of(layer: Layer) -> str:
    """Return the word for `layer`'s kind in a description."""
    return _NAMES[type(layer)]


def layer_to_dict(layer: Layer) -> dict[str, Any]:
    """Return `{"layer": kind}` with the layer's fields."""
    return {"layer": name_of(layer), **dataclasses.asdict(layer)}


def layer_from_dict(fields: Any) -> Layer:
    """Rebuild `layer_to_dict`; only `bias` may be missing. Raises `SpecError` for anything else."""
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise SpecError(f"a layer is {fields!r:.80}; write it as {{ layer = KIND, ... }}")
    kind = fields.get("layer")
    if not isinstance(kind, str) or kind not in LAYERS:
        raise SpecError(f"layer is {kind!r:.80}; choose from {', '.join(LAYERS)}")
    values = {key: value for key, value in fields.items() if key != "layer"}
    known = {f.name for f in dataclasses.fields(LAYERS[kind])}
    if odd := sorted((set(values) - known) | (known - set(values) - {"bias"})):
        raise SpecError(f"{kind}: unknown or missing fields {', '.join(odd)[:200]}")
    return LAYERS[kind](**values)


def shape_after(layer: Layer, shape: Shape) -> Shape:
    """Return what `layer` makes of `shape`; raises `SpecError` where it cannot take that."""
    if isinstance(layer, Linear):
        return (layer.outputs,)
    if isinstance(layer, ReLU):
        return shape
    if len(shape) == 1:
        raise SpecError("only relu and linear may stand behind a linear layer")
    channels, height, width = shape
    if isinstance(layer, Convolution):
        return layer.outputs, height, width
    if isinstance(layer, InstanceNorm):
        if height * width == 1:
            raise SpecError("the norm of a single pixel is always zero")
        return shape
    if min(height, width) < layer.size:
        raise SpecError(f"there is no square of {layer.size} pixels in {height}x{width}")
    return channels, height // layer.size, width // layer.size


def _require_integer(layer: Any, name: str, low: int, high: int) -> None:
    value = getattr(layer, name)
    if type(value) is not int or not low <= value <= high:
        raise SpecError(
            f"{name_of(layer)}: {name} is {value!r:.80}; it must be an integer from {low} to {high}"
        )


def _require_flag(layer: Any, name: str) -> None:
    value = getattr(layer, name)
    if type(value) is not bool:
        raise SpecError(f"{name_of(layer)}: {name} is {value!r:.80}; it must be true or false")
