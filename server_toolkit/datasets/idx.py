"""IDX files, plain or gzip: the format of MNIST and of what took its place.

Two zero bytes, the element type (8: unsigned byte), the number of dimensions, each dimension as
a big-endian 32-bit number, then the elements (LeCun, Cortes and Burges, "The MNIST database").
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from edge_sdk.training.dataset import Dataset
from server_toolkit.datasets.files import open_regular
from server_toolkit.errors import ConfigError

UNSIGNED_BYTE = 8
MAX_SIDE = 512  # of the images that a network takes
DEFLATE_RATIO = 1032  # one byte of a gzip file unpacks to no more than these
MAX_BYTES = 1 << 31  # of one file's elements; EMNIST, the largest known, has 0.6e9
PIECE_BYTES = 1 << 20

Bytes = npt.NDArray[np.uint8]


def load_idx(images: Path, labels: Path, *, classes: int) -> Dataset:
    """Return the grey images and the labels of two IDX files, `(N, 1, H, W) uint8`.

    Either file may be the plain one or, with `.gz` behind the same name, a packed one. Raises
    `ConfigError` naming the file that is missing, damaged or does not belong to the other.
    """
    pixels, numbers = _read_either(images, dimensions=3), _read_either(labels, dimensions=1)
    if len(pixels) != len(numbers):
        raise ConfigError(
            f"{images} holds {len(pixels)} images, {labels.name} {len(numbers)} labels; "
            "they are not of one data set"
        )
    if min(pixels.shape) < 1 or max(pixels.shape[1:]) > MAX_SIDE:
        raise ConfigError(
            f"{images}: {len(pixels)} images of {pixels.shape[1]}x{pixels.shape[2]}; sides of 1 "
            f"to {MAX_SIDE} pixels are read"
        )
    if numbers.max() >= classes:
        raise ConfigError(
            f"{labels}: label {numbers.max()} of image {int(numbers.argmax())}; there are "
            f"{classes} classes"
        )
    return Dataset(pixels[:, None], numbers.astype(np.int64), classes)


def read_idx(path: Path, *, dimensions: int) -> Bytes:
    """Return the array of one IDX file of unsigned bytes, packed where the name ends in `.gz`.

    What the header claims is compared with the file's size before anything is allocated. Raises
    `ConfigError` naming the file.
    """
    with open_regular(path) as (file, size_bytes):
        if path.suffix != ".gz":
            return _read(file, path, dimensions, most_bytes=size_bytes)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                stream = cast(BinaryIO, unpacked)
                return _read(stream, path, dimensions, most_bytes=DEFLATE_RATIO * size_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{path} is no whole gzip file: {error}") from error


def _read_either(path: Path, *, dimensions: int) -> Bytes:
    packed = path.with_name(f"{path.name}.gz")
    return read_idx(
        packed if packed.exists() and not path.exists() else path, dimensions=dimensions
    )


def _read(file: BinaryIO, path: Path, dimensions: int, *, most_bytes: int) -> Bytes:
    header = file.read(4 + 4 * dimensions)
    if header[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]) or len(header) < 4 + 4 * dimensions:
        raise ConfigError(f"{path} is no IDX file of unsigned bytes in {dimensions} dimensions")
    shape = [int.from_bytes(header[at : at + 4]) for at in range(4, len(header), 4)]
    claimed = math.prod(shape)
    if claimed > MAX_BYTES:
        raise ConfigError(
            f"{path}: its header promises {claimed} bytes; at most {MAX_BYTES} are read"
        )
    if claimed > most_bytes - len(header):
        raise ConfigError(f"{path} is cut short: its header promises {claimed} bytes")
    data = bytearray()
    while piece := file.read(min(PIECE_BYTES, claimed + 1 - len(data))):
        data += piece
    if len(data) != claimed:
        relation = "is cut short" if len(data) < claimed else "goes on behind its end"
        raise ConfigError(f"{path} {relation}: its header promises {claimed} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)
