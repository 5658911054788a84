"""The data sets that have a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_sdk.training.dataset import Dataset
from edge_sdk.training.sources import load_digits
from server_toolkit.datasets.cifar import TEST_BATCH, load_cifar10
from server_toolkit.datasets.folders import load_image_folder, split_by_class
from server_toolkit.datasets.idx import load_idx
from server_toolkit.datasets.image_data import ImageData
from server_toolkit.errors import ConfigError

DATASETS = ("mnist", "fashion_mnist", "cifar10", "digits", "folder:PATH")
FOLDER = "folder:"
DIGITS_SIDE = 16  # the 8x8 digits, bilinearly enlarged
DIGITS_TEST_SHARE = 0.25

_Loader = Callable[[Path], tuple[Dataset, Dataset]]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
USUAL: dict[str, Statistics] = {  # mean and deviation of the training images, rounded
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "digits": ((0.3,), (0.35,)),
}


def load_dataset(name: str, directory: Path | None = None, *, seed: int = 0) -> ImageData:
    """Return a data set by name: mnist, fashion_mnist, cifar10, digits or folder:PATH.

    The files of the first three are looked for in `directory`, in its folder of the data set's
    name, and in the folder that the published archive makes. `seed` draws the test images where
    nobody has set them apart: of digits and of a folder without `train` and `test`. Raises
    `ConfigError` naming the file that is missing or damaged.
    """
    if name.startswith(FOLDER):
        train, test = load_image_folder(Path(name.removeprefix(FOLDER)).expanduser(), seed=seed)
        channels = train.pixels.shape[1]
        return ImageData(name, train, test, (0.5,) * channels, (0.25,) * channels)
    if name not in USUAL:
        raise ConfigError(f"{name!r:.80} is no known data set; choose from {', '.join(DATASETS)}")
    if name == "digits":
        train, test = _digits(seed)
    elif directory is None:
        raise ConfigError(f"{name} is read from files; say in which directory they are")
    else:
        train, test = _load_published(name, directory)
    return ImageData(name, train, test, *USUAL[name])


def _digits(seed: int) -> tuple[Dataset, Dataset]:
    digits = load_digits(DIGITS_SIDE)
    pixels = np.rint(digits.images * 255).astype(np.uint8)
    whole = Dataset(pixels, digits.labels, digits.classes)
    train, test = split_by_class(whole.labels, share=DIGITS_TEST_SHARE, seed=seed)
    return whole.subset(train), whole.subset(test)


def _load_published(name: str, directory: Path) -> tuple[Dataset, Dataset]:
    load, files, _ = _PUBLISHED[name]
    place = _place(name, directory)
    if place is None:
        looked = ", ".join(str(p) for p in _places(name, directory))
        raise ConfigError(f"{name} is not there: no {files[0]} in {looked}")
    return load(place)


def has_files(name: str, directory: Path) -> bool:
    """Say whether `load_dataset` would find files of a published data set."""
    return _place(name, directory) is not None


def _idx(folder: Path) -> tuple[Dataset, Dataset]:
    def part(prefix: str) -> Dataset:
        images, labels = (f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        return load_idx(folder / images, folder / labels, classes=10)

    return part("train"), part("t10k")


# How the files of a published set are read, a file that says they are there, and the folders that
# its archive makes.
_FIRST_IDX = "train-images-idx3-ubyte"
_IDX = (_idx, (_FIRST_IDX, f"{_FIRST_IDX}.gz"), ("", "raw"))
_PUBLISHED: dict[str, tuple[_Loader, tuple[str, ...], tuple[str, ...]]] = {
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "cifar10": (load_cifar10, (TEST_BATCH,), ("", "cifar-10-batches-bin")),
}


def _places(name: str, directory: Path) -> list[Path]:
    """Return where the files may be; first the folder of the set's name: two sets' are alike."""
    _, _, folders = _PUBLISHED[name]
    return [top / folder for top in (directory / name, directory) for folder in folders]


def _place(name: str, directory: Path) -> Path | None:
    _, files, _ = _PUBLISHED[name]
    for place in _places(name, directory):
        if any((place / file).exists() for file in files):
            return place
    return None
