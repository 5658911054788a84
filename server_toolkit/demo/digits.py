"""Scikit-learn's digits, divided so that nobody sees what they should not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.training.dataset import Dataset
from edge_sdk.training.partition import make_partition, write_partition
from edge_sdk.training.sources import load_digits

IMAGE_SIZE = 16  # the 8x8 digits, bilinearly enlarged
TEST_SHARE = 0.25
SERVER_IMAGES_PER_CLASS = 5
DIRICHLET_ALPHA = 1.0  # devices differ in the digits they see, as cameras do


@dataclass(frozen=True)
class DemoFiles:
    """Where the parts lie. `devices` is read by devices only, `test` by the evaluation only."""

    devices: Path
    partition: Path
    server_set: Path
    test: Path
    images_per_device: dict[str, int]


def divide_digits(directory: Path, device_ids: list[str], *, seed: int) -> DemoFiles:
    """Write the disjoint parts as `.npz` files and the devices' shares as a partition file."""
    digits = load_digits(IMAGE_SIZE)
    test, server_set, pool = split_indices(digits.labels, seed=seed)
    directory.mkdir(parents=True, exist_ok=True)
    files = {n: directory / f"{n}.npz" for n in ("devices", "server_set", "test")}
    for name, indices in (("devices", pool), ("server_set", server_set), ("test", test)):
        _write(files[name], digits.subset(indices))
    shares = make_partition(
        digits.labels[pool], device_ids, kind="dirichlet", alpha=DIRICHLET_ALPHA, seed=seed
    )
    partition = directory / "partition.json"
    write_partition(partition, shares, dataset="devices.npz")
    return DemoFiles(
        devices=files["devices"],
        partition=partition,
        server_set=files["server_set"],
        test=files["test"],
        images_per_device={d: len(i) for d, i in shares.items()},
    )


def split_indices(
    labels: npt.NDArray[np.int64], *, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return test, server and device indices: disjoint, every class in each, nothing left over."""
    rng = np.random.default_rng(seed)
    parts: list[list[npt.NDArray[np.int64]]] = [[], [], []]
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        first = round(TEST_SHARE * len(order))
        cuts = np.split(order, [first, first + SERVER_IMAGES_PER_CLASS])
        for part, cut in zip(parts, cuts, strict=True):
            part.append(cut)
    test, server_set, pool = (np.sort(np.concatenate(p)) for p in parts)
    return test, server_set, pool


def _write(path: Path, dataset: Dataset) -> None:
    np.savez_compressed(path, images=dataset.images, labels=dataset.labels)
