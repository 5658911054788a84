"""The order of a network's parameters in one flat float32 vector, without torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.spec import ModelSpec, layer_parameters

Flat = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parameter:
    """One named tensor; `shape` is torch's (a convolution's is output, input, height, width)."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParameterLayout:
    """Ordered parameters; maps named arrays to and from one flat `(size,) float32` vector."""

    parameters: tuple[Parameter, ...]

    @cached_property
    def size(self) -> int:
        """Number of elements of the flat vector."""
        return sum(p.size for p in self.parameters)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any name, shape or the order."""
        text = json.dumps([[p.name, list(p.shape)] for p in self.parameters], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def slices(self) -> Iterator[tuple[Parameter, slice]]:
        """Yield every parameter with its place in the flat vector."""
        start = 0
        for p in self.parameters:
            yield p, slice(start, start + p.size)
            start += p.size

    def split(self, flat: Flat) -> dict[str, Flat]:
        """Return named views into `flat`; raises `ValueError` for another shape or dtype."""
        if flat.shape != (self.size,) or flat.dtype != np.float32:
            raise ValueError(
                f"expected ({self.size},) float32, got {flat.shape} {flat.dtype}; "
                "the vector belongs to another network"
            )
        return {p.name: flat[s].reshape(p.shape) for p, s in self.slices()}

    def join(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> Flat:
        """Return the flat vector of exactly these arrays; raises `ValueError` naming a misfit."""
        names = [p.name for p in self.parameters]
        if set(arrays) != set(names):
            odd = sorted(set(arrays) ^ set(names))
            raise ValueError(f"unknown or missing parameters: {', '.join(odd)}")
        flat = np.empty(self.size, np.float32)
        for p, s in self.slices():
            array = arrays[p.name]
            if array.shape != p.shape or array.dtype != np.float32:
                raise ValueError(
                    f"{p.name}: expected {p.shape} float32, got {array.shape} {array.dtype}"
                )
            flat[s] = array.ravel()
        return flat


def layout_of(spec: ModelSpec) -> ParameterLayout:
    """Return the layout of `spec`'s network, equal to torch's `named_parameters()` order."""
    parameters: list[Parameter] = []
    for name, layer, before, _ in spec.shapes():
        path = name if name == "classifier" else f"features.{name}"
        for parameter, shape in layer_parameters(layer, before):
            parameters.append(Parameter(f"{path}.{parameter}", shape))
    return ParameterLayout(tuple(parameters))
