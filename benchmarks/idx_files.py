"""Reading the IDX files in which MNIST and Fashion-MNIST are distributed."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_sdk.training import Dataset

NAMES = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 8


def load(directory: Path, part: Literal["train", "test"]) -> Dataset:
    """Read the images and labels of one part, 28x28, from `.gz` files or unpacked ones.

    Ends the program with a sentence where a file is missing or is no IDX file.
    """
    images = _read(directory, f"{NAMES[part]}-images-idx3-ubyte")
    labels = _read(directory, f"{NAMES[part]}-labels-idx1-ubyte")
    pixels = images[:, None].astype(np.float32) / np.float32(255)
    return Dataset(pixels, labels.astype(np.int64), 10)


def _read(directory: Path, name: str) -> npt.NDArray[np.uint8]:
    plain, packed = directory / name, directory / f"{name}.gz"
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    except OSError as error:
        raise SystemExit(f"{plain} (or .gz) cannot be read: {error}") from error
    dimensions = data[3] if len(data) > 3 else 0
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i]) for i in range(dimensions)]
    start = 4 + 4 * dimensions
    if data[:3] != bytes([0, 0, UNSIGNED_BYTE]) or len(data) != start + np.prod(shape, dtype=int):
        raise SystemExit(f"{plain} is no IDX file of bytes, or it is cut")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
