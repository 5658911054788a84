"""The description of a network, small enough to travel in a signed task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = ("convnet", "alexnet")


class SpecError(ValueError):
    """A model description that no network can be built from."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which network, for which images.

    `image_size` is the side of the square input in pixels; `width` and `depth` count the channels
    and blocks of the ConvNet (AlexNet ignores them). `mean` and `std` have one entry a channel and
    are applied inside the model: its input is `(N, channels, image_size, image_size) float32 in
    [0, 1]`. Raises `SpecError` where the values do not describe a network.
    """

    architecture: str = "convnet"
    channels: int
    image_size: int
    classes: int
    width: int = 128
    depth: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise SpecError(
                f"unknown architecture {self.architecture!r}; "
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
                raise SpecError(f"{name} is {value!r}; it must be an integer from {low} to {high}")
        halvings = self.depth if self.architecture == "convnet" else 3
        if self.image_size % 2**halvings:
            raise SpecError(
                f"image_size {self.image_size} cannot be halved {halvings} times; "
                f"pad the images to a multiple of {2**halvings} (28 becomes 32)"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(
                isinstance(v, float) and abs(v) < 1e6 for v in values
            ):
                raise SpecError(f"{name} is {values!r}; it needs {self.channels} finite numbers")
        if min(self.std) <= 0:
            raise SpecError(f"std is {self.std!r}; every entry must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelSpec:
        """Rebuild a spec from `to_dict`; unknown, missing or mistyped fields raise `SpecError`."""
        known = {f.name for f in dataclasses.fields(cls)}
        if set(fields) != known:
            odd = sorted(set(fields) ^ known)
            raise SpecError(f"model description: unknown or missing fields {', '.join(odd)}")
        values = dict(fields)
        for name in ("mean", "std"):
            numbers = values[name]
            if not isinstance(numbers, list) or not all(type(v) in (int, float) for v in numbers):
                raise SpecError(f"{name} is {numbers!r}; it must be a list of numbers")
            values[name] = tuple(float(v) for v in numbers)
        return cls(**values)
