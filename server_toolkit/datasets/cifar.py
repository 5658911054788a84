"""CIFAR-10's binary batches: records of a label byte and 3,072 pixels, red, green, blue planes.

Krizhevsky, "The CIFAR-10 dataset", the binary version.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.training.dataset import Dataset
from server_toolkit.datasets.files import open_regular
from server_toolkit.errors import ConfigError

CLASSES, CHANNELS, SIDE = 10, 3, 32
RECORD_BYTES = 1 + CHANNELS * SIDE * SIDE
MAX_BATCH_BYTES = 1 << 30
TRAIN_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_BATCH = "test_batch.bin"


def load_cifar10(directory: Path) -> tuple[Dataset, Dataset]:
    """Return training and test images, `(N, 3, 32, 32) uint8`, of a folder of batches.

    Batches may be shorter than the official 10,000 records, and the last ones may be missing; it
    is the caller who tells what part of the data set that is.
    Raises `ConfigError` naming the file that is missing or damaged.
    """
    there = [name for name in TRAIN_BATCHES if (directory / name).exists()]
    expected = TRAIN_BATCHES[: max(len(there), 1)]
    for name in expected:
        if name not in there:
            raise ConfigError(f"{directory / name} is missing")
    parts = [read_batch(directory / name) for name in expected]
    train = Dataset(
        np.concatenate([p.pixels for p in parts]),
        np.concatenate([p.labels for p in parts]),
        CLASSES,
    )
    return train, read_batch(directory / TEST_BATCH)


def read_batch(path: Path) -> Dataset:
    """Return the images of one batch file of any whole number of records; raises `ConfigError`."""
    with open_regular(path) as (file, size_bytes):
        if size_bytes == 0 or size_bytes % RECORD_BYTES:
            raise ConfigError(
                f"{path} is damaged: {size_bytes} bytes are no whole number of records of "
                f"{RECORD_BYTES}"
            )
        if size_bytes > MAX_BATCH_BYTES:
            raise ConfigError(f"{path}: {size_bytes} bytes; at most {MAX_BATCH_BYTES} are read")
        data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise ConfigError(f"{path} changed while it was read")
    records: npt.NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= CLASSES:
        raise ConfigError(f"{path}: record {int(labels.argmax())} has the label {labels.max()}")
    pixels = np.ascontiguousarray(records[:, 1:]).reshape(-1, CHANNELS, SIDE, SIDE)
    return Dataset(pixels, labels, CLASSES)
