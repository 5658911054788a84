"""Labelled images for training: `.npz` files, image folders and scikit-learn's digits."""

from __future__ import annotations

import dataclasses
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from models import ModelSpec

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
Source = Literal["npz", "folder", "digits"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """`images` `(N, C, H, W) float32 in [0, 1]`, `labels` `(N,) int64` in [0, `classes`).

    Raises `ConfigError` where the arrays are not that.
    """

    images: Float32
    labels: Int64
    classes: int

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.float32:
            raise ConfigError(
                f"images are {self.images.shape} {self.images.dtype}; expected (N, C, H, W) float32"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64:
            raise ConfigError(
                f"labels are {self.labels.shape} {self.labels.dtype}; expected "
                f"({len(self.images)},) int64"
            )
        if len(self.images) == 0:
            return
        low, high = float(self.images.min()), float(self.images.max())
        if not (low >= 0 and high <= 1):
            raise ConfigError(f"pixels reach from {low:g} to {high:g}; they must lie in [0, 1]")
        if self.labels.min() < 0 or self.labels.max() >= self.classes:
            raise ConfigError(
                f"labels reach from {self.labels.min()} to {self.labels.max()}; "
                f"with {self.classes} classes they must lie in 0 to {self.classes - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Int64) -> Dataset:
        """Return the examples at `indices`, in that order."""
        return Dataset(self.images[indices], self.labels[indices], self.classes)

    def fit_to(self, spec: ModelSpec) -> Dataset:
        """Return the examples as `spec`'s network takes them; 28x28 gets a black border to 32x32.

        Raises `ConfigError` saying what to change where they cannot be made to fit.
        """
        height, width = self.images.shape[2:]
        fitted = self
        if (height, width) == (28, 28) and spec.image_size == 32:
            border = ((0, 0), (0, 0), (2, 2), (2, 2))
            fitted = dataclasses.replace(self, images=np.pad(self.images, border))
        fitted.require(spec)
        return dataclasses.replace(fitted, classes=spec.classes)

    def require(self, spec: ModelSpec) -> None:
        """Raise `ConfigError` unless `spec`'s network takes these images and labels."""
        _, channels, height, width = self.images.shape
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


def load_dataset(source: Source, path: Path | None, spec: ModelSpec) -> Dataset:
    """Return the data set that a configuration names, fitted to `spec`; raises `ConfigError`."""
    if source == "digits":
        return load_digits(spec.image_size, channels=spec.channels).fit_to(spec)
    if path is None:
        raise ConfigError(f"a data set of kind {source} needs a path")
    if source == "npz":
        return load_npz(path).fit_to(spec)
    return load_folder(path, channels=spec.channels).fit_to(spec)


def load_npz(path: Path | str) -> Dataset:
    """Read `images` (N, H, W) or (N, C, H, W), uint8 or float in [0, 1], and integer `labels`.

    Raises `ConfigError` naming the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except KeyError as error:
        raise ConfigError(f"{path}: it must hold the arrays images and labels") from error
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(f"{path} is no readable .npz file: {error}") from error
    if images.ndim == 3:
        images = images[:, None]
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / np.float32(255)
    elif np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    else:
        raise ConfigError(f"{path}: images are {images.dtype}; expected uint8 or float")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"{path}: labels are {labels.dtype}; expected integers")
    labels = labels.astype(np.int64)
    try:
        return Dataset(images, labels, int(labels.max(initial=-1)) + 1)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_folder(root: Path | str, *, channels: int) -> Dataset:
    """Read `root/class_name/*.png|jpg`; classes are numbered in the order of their names.

    `channels` 1 converts to grey, 3 to RGB. Raises `ConfigError` naming a damaged file, or the
    first file whose size differs from the others'.
    """
    from PIL import Image  # only here: most devices never read an image file

    if channels not in (1, 3):
        raise ConfigError(f"image files give 1 or 3 channels, not {channels}")
    try:
        names = sorted(p.name for p in Path(root).iterdir() if p.is_dir())
    except OSError as error:
        raise ConfigError(f"{root}: {error.strerror}") from error
    images: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for path in sorted((Path(root) / name).iterdir()):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            try:
                with Image.open(path) as file:
                    pixels = np.asarray(file.convert("L" if channels == 1 else "RGB"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ConfigError(f"{path} is no readable image: {error}") from error
            if images and pixels.shape != images[0].shape:
                raise ConfigError(
                    f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, the images before it are "
                    f"{images[0].shape[1]}x{images[0].shape[0]}; bring all to one size"
                )
            images.append(pixels)
            labels.append(label)
    if not images:
        raise ConfigError(f"{root}: no {', '.join(IMAGE_SUFFIXES)} files in folders, one a class")
    stack = np.stack(images).reshape(len(images), *images[0].shape[:2], channels)
    scaled = stack.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return Dataset(np.ascontiguousarray(scaled), np.array(labels, np.int64), len(names))


def load_digits(image_size: int, *, channels: int = 1) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, enlarged from 8x8 by bilinear interpolation.

    Raises `ConfigError` where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as fetch
    except ImportError as error:
        raise ConfigError(
            "the digits come with scikit-learn; run `pip install scikit-learn`"
        ) from error
    digits = fetch()
    small = (digits.images / 16).astype(np.float32)
    matrix = _bilinear(small.shape[1], image_size)
    large = np.clip(matrix @ small @ matrix.T, 0, 1)
    images = np.repeat(large[:, None], channels, axis=1)
    return Dataset(images, digits.target.astype(np.int64), 10)


def _bilinear(source: int, target: int) -> Float32:
    """Return the `(target, source)` weights of linear interpolation between pixel centres."""
    centres = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    distance = np.abs(centres[:, None] - np.arange(source))
    return np.maximum(0, 1 - distance).astype(np.float32)
