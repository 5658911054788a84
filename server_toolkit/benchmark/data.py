"""Who sees which images: devices, server and judges never share one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.training.dataset import Dataset
from models import ModelSpec
from server_toolkit.benchmark.presets import Network
from server_toolkit.datasets import DATASETS, ImageData, load_dataset
from server_toolkit.errors import ConfigError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """One seed's disjoint parts of a data set.

    `server` has its images sorted so that the first n·classes of them are n of every class, so a
    larger server set holds the smaller ones; `test` likewise, so that its first images are as
    balanced as all.
    """

    devices: Dataset
    server: Dataset
    test: Dataset


@lru_cache(maxsize=2)
def load(name: str, directory: Path | None) -> ImageData:
    """Return a data set; for a named one `directory` may hold it or a folder of its name."""
    if directory is not None and name in DATASETS and (directory / name).is_dir():
        directory = directory / name
    return load_dataset(name, directory)


@lru_cache(maxsize=8)
def digest_of(name: str, directory: Path | None) -> str:
    """Return a hash of all pixels and labels: which data it is, wherever it lies."""
    data = load(name, directory)
    digest = hashlib.sha256()
    for part in (data.train, data.test):
        digest.update(f"{part.pixels.shape} {part.pixels.dtype} {part.classes}".encode())
        digest.update(np.ascontiguousarray(part.pixels).data)
        digest.update(part.labels.tobytes())
    return digest.hexdigest()[:24]


def spec_for(data: ImageData, network: Network) -> ModelSpec:
    """Return the network for a data set's images."""
    _, channels, height, width = data.train.pixels.shape
    if height != width:
        raise ConfigError(f"{data.name}: images are {height}x{width}; they must be square")
    return ModelSpec(
        architecture=network.architecture,
        channels=channels,
        image_size=height,
        classes=data.train.classes,
        width=network.width,
        mean=data.mean,
        std=data.std,
    )


def split(
    data: ImageData,
    *,
    seed: int,
    device_images: int | None,
    server_images_per_class: int,
    test_images: int | None,
) -> Split:
    """Deal a data set out; the same seed gives the same parts.

    Raises `ConfigError` where a class is too small for the server's images.
    """
    rng = np.random.default_rng([seed, 20])
    order = _round_robin(data.train.labels, data.train.classes, rng)
    kept = server_images_per_class * data.train.classes
    smallest = int(np.bincount(data.train.labels, minlength=data.train.classes).min())
    if server_images_per_class >= smallest:
        raise ConfigError(
            f"{data.name}: a server set of {server_images_per_class} images a class leaves the "
            f"devices none of a class with {smallest}; choose smaller --server-images"
        )
    pool = rng.permutation(order[kept:])
    chosen = pool if device_images is None else pool[:device_images]
    test = _round_robin(data.test.labels, data.test.classes, rng)
    return Split(
        devices=data.train.subset(np.sort(chosen)),
        server=data.train.subset(order[:kept]),
        test=data.test.subset(test if test_images is None else test[:test_images]),
    )


def _round_robin(labels: Int64, classes: int, rng: np.random.Generator) -> Int64:
    """Return all indices in random order, one of every class in turn as long as there are any."""
    turn = np.empty(len(labels))
    for label in range(classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        turn[members] = np.arange(len(members)) + label / classes
    return np.argsort(turn, kind="stable").astype(np.int64)
