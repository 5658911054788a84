"""The description of a network, small enough to travel in a signed task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from models.architectures import Chain, alexnet, convnet, numbered
from models.layers import (
    Convolution,
    InstanceNorm,
    Layer,
    Linear,
    Shape,
    SpecError,
    layer_from_dict,
    layer_to_dict,
    shape_after,
)

__all__ = ["ARCHITECTURES", "ModelSpec", "SpecError"]

ARCHITECTURES = ("convnet", "alexnet", "chain")
MAX_LAYERS = 64
MAX_PARAMETERS = 1 << 28
MAX_ACTIVATIONS = 1 << 27  # numbers behind one layer, for one image


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which network, for which images.

    `image_size` is the side of the square input in pixels; pooling drops what is left over of an
    odd side. `width` and `depth` count the channels and blocks of the ConvNet (the others ignore
    them), `layers` are those of a "chain" before its last layer, which is always
    `Linear(outputs=classes)`. `mean` and `std` have one entry a channel and are applied inside the
    model: its input is `(N, channels, image_size, image_size) float32 in [0, 1]`. Raises
    `SpecError` where the values do not describe a network.
    """

    architecture: str = "convnet"
    channels: int
    image_size: int
    classes: int
    width: int = 128
    depth: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise SpecError(
                f"unknown architecture {self.architecture!r:.80}; "
                f"choose from {', '.join(ARCHITECTURES)}"
            )
        for name, low, high in (
            ("channels", 1, 16),
            ("image_size", 4, 512),
            ("classes", 2, 10_000),
            ("width", 1, 2048),
            ("depth", 1, 8),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise SpecError(
                    f"{name} is {value!r:.80}; it must be an integer from {low} to {high}"
                )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(
                isinstance(v, float) and abs(v) < 1e6 for v in values
            ):
                raise SpecError(
                    f"{name} is {values!r:.80}; it needs {self.channels} finite numbers"
                )
        if min(self.std) <= 0:
            raise SpecError(f"std is {self.std!r}; every entry must be above 0")
        if self.layers and self.architecture != "chain":
            raise SpecError(f'layers belong to architecture "chain", not to {self.architecture!r}')
        if len(self.layers) > MAX_LAYERS:
            raise SpecError(f"a chain of {len(self.layers)} layers; {MAX_LAYERS} are allowed")
        self._check_sizes()

    @cached_property
    def chain(self) -> Chain:
        """The named layers from the normalised images to the classifier, without that."""
        if self.architecture == "convnet":
            return convnet(self.width, self.depth)
        return alexnet() if self.architecture == "alexnet" else numbered(self.layers)

    def shapes(self) -> Iterator[tuple[str, Layer, Shape, Shape]]:
        """Yield the chain's layers with the shapes before and behind each; last the classifier.

        A shape is `(channels, height, width)`, or `(features,)` behind a linear layer. Raises
        `SpecError` naming a layer that cannot take the shape before it.
        """
        shape: Shape = (self.channels, self.image_size, self.image_size)
        for name, layer in (*self.chain, ("classifier", Linear(outputs=self.classes))):
            try:
                behind = shape_after(layer, shape)
            except SpecError as error:
                remedy = (
                    f"; with image_size {self.image_size} use fewer or smaller pooling layers"
                    if len(shape) == 3
                    else ""
                )
                raise SpecError(f"layer {name}: {error}{remedy}") from error
            yield name, layer, shape, behind
            shape = behind

    def _check_sizes(self) -> None:
        parameters = 0
        for name, layer, before, behind in self.shapes():
            if math.prod(behind) > MAX_ACTIVATIONS:
                raise SpecError(f"{name} gives {math.prod(behind)} numbers an image; too many")
            parameters += sum(math.prod(s) for _, s in layer_parameters(layer, before))
        if parameters > MAX_PARAMETERS:
            raise SpecError(f"{parameters} parameters; at most {MAX_PARAMETERS} are allowed")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; `layers` only of a chain."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["layers"]
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        if self.architecture == "chain":
            fields["layers"] = [layer_to_dict(layer) for layer in self.layers]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelSpec:
        """Rebuild a spec from `to_dict`; unknown, missing or mistyped fields raise `SpecError`."""
        known = {f.name for f in dataclasses.fields(cls)} - {"layers"}
        if fields.get("architecture") == "chain":
            known.add("layers")
        if set(fields) != known:
            odd = sorted(set(fields) ^ known)
            raise SpecError(f"model description: unknown or missing fields {', '.join(odd)}")
        values = dict(fields)
        for name in ("mean", "std"):
            numbers = values[name]
            if not isinstance(numbers, list) or not all(
                type(v) in (int, float) and abs(v) < 1e6 for v in numbers
            ):
                raise SpecError(
                    f"{name} is {numbers!r:.80}; it must be a list of numbers below a million"
                )
            values[name] = tuple(float(v) for v in numbers)
        if "layers" in values:
            layers = values["layers"]
            if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
                raise SpecError(f"layers must be a list of at most {MAX_LAYERS}")
            values["layers"] = tuple(_numbered_layer(i, layer) for i, layer in enumerate(layers))
        return cls(**values)


def layer_parameters(layer: Layer, before: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and torch's shapes of the parameters of a layer behind a shape."""
    if isinstance(layer, InstanceNorm):
        return [("weight", before[:1]), ("bias", before[:1])]
    weight: tuple[int, ...]
    if isinstance(layer, Convolution):
        weight = (layer.outputs, before[0], layer.kernel, layer.kernel)
    elif isinstance(layer, Linear):
        weight = (layer.outputs, math.prod(before))
    else:
        return []
    return [("weight", weight)] + ([("bias", (layer.outputs,))] if layer.bias else [])


def _numbered_layer(index: int, fields: Any) -> Layer:
    try:
        return layer_from_dict(fields)
    except SpecError as error:
        raise SpecError(f"layers[{index}]: {error}") from error
