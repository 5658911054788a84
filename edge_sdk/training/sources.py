"""Where images come from: `.npz` files, image folders and scikit-learn's digits."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.training.dataset import Dataset, Float32
from models import ModelSpec

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_FORMATS = ("PNG", "JPEG")  # whatever a file is called: Pillow runs programs for some others
Source = Literal["npz", "folder", "digits"]


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
        # numpy's own text would recommend loading it unsafely
        reason = "it holds Python objects" if "pickle" in str(error) else error
        raise ConfigError(f"{path} is no readable .npz file of plain arrays: {reason}") from error
    if images.ndim == 3:
        images = images[:, None]
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32, copy=False)
    elif images.dtype != np.uint8:
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
                with Image.open(path, formats=IMAGE_FORMATS) as file:
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
    pixels = np.ascontiguousarray(stack.transpose(0, 3, 1, 2))
    return Dataset(pixels, np.array(labels, np.int64), len(names))


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
    weights: Float32 = np.maximum(0, 1 - distance).astype(np.float32)
    return weights
