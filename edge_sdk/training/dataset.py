"""Labelled images and how they must fit a network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from models import ModelSpec

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.float32] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    """`pixels` `(N, C, H, W)`, `labels` `(N,) int64` in [0, `classes`).

    Pixels are float32 in [0, 1], or uint8 and 255 times that: image files and cameras give bytes,
    and a device keeps them so, in a quarter of the memory. Raises `ConfigError` where the arrays
    are not that.
    """

    pixels: Pixels
    labels: Int64
    classes: int

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype not in (np.float32, np.uint8):
            raise ConfigError(
                f"images are {self.pixels.shape} {self.pixels.dtype}; expected (N, C, H, W) "
                "float32 or uint8"
            )
        if self.labels.shape != self.pixels.shape[:1] or self.labels.dtype != np.int64:
            raise ConfigError(
                f"labels are {self.labels.shape} {self.labels.dtype}; expected "
                f"({len(self.pixels)},) int64"
            )
        if len(self.pixels) == 0:
            return
        low, high = float(self.pixels.min()), float(self.pixels.max())
        if not (low >= 0 and high <= self.white):
            raise ConfigError(f"pixels reach from {low:g} to {high:g}; they must lie in [0, 1]")
        if self.labels.min() < 0 or self.labels.max() >= self.classes:
            raise ConfigError(
                f"labels reach from {self.labels.min()} to {self.labels.max()}; "
                f"with {self.classes} classes they must lie in 0 to {self.classes - 1}"
            )

    @property
    def white(self) -> np.float32:
        """What `pixels` are divided by: 255 for bytes, else 1."""
        return np.float32(255 if self.pixels.dtype == np.uint8 else 1)

    @property
    def images(self) -> Float32:
        """All images as float32 in [0, 1]; a copy where they are kept as bytes."""
        if self.pixels.dtype == np.float32:
            return cast(Float32, self.pixels)
        return np.divide(self.pixels, self.white, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, indices: Int64) -> Dataset:
        """Return the examples at `indices`, in that order."""
        return Dataset(self.pixels[indices], self.labels[indices], self.classes)

    def fit_to(self, spec: ModelSpec) -> Dataset:
        """Return the examples as `spec`'s network takes them; 28x28 gets a black border to 32x32.

        Raises `ConfigError` saying what to change where they cannot be made to fit.
        """
        height, width = self.pixels.shape[2:]
        fitted = self
        if (height, width) == (28, 28) and spec.image_size == 32:
            border = ((0, 0), (0, 0), (2, 2), (2, 2))
            fitted = dataclasses.replace(self, pixels=cast(Pixels, np.pad(self.pixels, border)))
        fitted.require(spec)
        return dataclasses.replace(fitted, classes=spec.classes)

    def require(self, spec: ModelSpec) -> None:
        """Raise `ConfigError` unless `spec`'s network takes these images and labels."""
        _, channels, height, width = self.pixels.shape
        if channels != spec.channels:
            raise ConfigError(
                f"images have {channels} channels, the model takes {spec.channels}; convert the "
                f"images or use a model with channels = {channels}"
            )
        if (height, width) != (spec.image_size, spec.image_size):
            raise ConfigError(
                f"images are {height}x{width}, the model takes {spec.image_size}x"
                f"{spec.image_size}; resize the images or use a model with another image_size"
            )
        if self.classes > spec.classes:
            raise ConfigError(
                f"the data set has {self.classes} classes, the model {spec.classes}; remove "
                "classes or use a model with more"
            )
