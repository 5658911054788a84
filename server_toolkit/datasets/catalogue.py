"""The data sets that have a name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_sdk.training.dataset import Dataset
from edge_sdk.training.sources import load_digits
from server_toolkit.datasets.cifar import TEST_BATCH, TRAIN_BATCHES, load_cifar10
from server_toolkit.datasets.folders import load_image_folder, split_by_class
from server_toolkit.datasets.idx import load_idx
from server_toolkit.datasets.image_data import ImageData
from server_toolkit.errors import ConfigError

log = logging.getLogger(__name__)

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
PUBLISHED_IMAGES = {  # for training and for tests
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
}


def load_dataset(name: str, directory: Path | None = None, *, seed: int = 0) -> ImageData:
    """Return a data set by name: mnist, fashion_mnist, cifar10, digits or folder:PATH.

    The files of the first three are looked for in `directory`, in its folder of the data set's
    name, and in the folder that the published archive makes. `seed` draws the test images where
    nobody has set them apart: of digits and of a folder without `train` and `test`. A part of a
    published data set is taken, with a warning in the log and in `remark`. Raises `ConfigError`
    naming the file that is missing or damaged.
    """
    if name.startswith(FOLDER):
        train, test = load_image_folder(Path(name.removeprefix(FOLDER)).expanduser(), seed=seed)
        channels = train.pixels.shape[1]
        return ImageData(name, train, test, (0.5,) * channels, (0.25,) * channels)
    if name not in USUAL:
        raise ConfigError(f"{name!r:.80} is no known data set; choose from {', '.join(DATASETS)}")
    remark = None
    if name == "digits":
        train, test = _digits(seed)
    elif directory is None:
        raise ConfigError(f"{name} is read from files; say in which directory they are (--data)")
    else:
        train, test, remark = _load_published(name, directory)
        if remark is not None:
            log.warning("in %s, %s", directory, remark)
    return ImageData(name, train, test, *USUAL[name], remark)


def _digits(seed: int) -> tuple[Dataset, Dataset]:
    digits = load_digits(DIGITS_SIDE)
    pixels = np.rint(digits.images * 255).astype(np.uint8)
    whole = Dataset(pixels, digits.labels, digits.classes)
    train, test = split_by_class(whole.labels, share=DIGITS_TEST_SHARE, seed=seed)
    return whole.subset(train), whole.subset(test)


def has_files(name: str, directory: Path) -> bool:
    """Say whether all files of a published data set are where `load_dataset` looks for them."""
    _, files, _ = _PUBLISHED[name]
    return any(all(_has(place, file) for file in files) for place in _places(name, directory))


def _load_published(name: str, directory: Path) -> tuple[Dataset, Dataset, str | None]:
    """Return training and test images and, where they are not all that was published, a remark."""
    load, files, _ = _PUBLISHED[name]
    places = _places(name, directory)
    for place in places:
        if _has(place, files[0]):
            train, test = load(place)
            return train, test, _what_is_missing(name, place, train, test)
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(
        f"{name} is not there: no {files[0]} in {looked}; `server-toolkit simulate --download` "
        "fetches it"
    )


def _what_is_missing(name: str, place: Path, train: Dataset, test: Dataset) -> str | None:
    published_train, published_test = PUBLISHED_IMAGES[name]
    if (len(train), len(test)) == (published_train, published_test):
        return None
    missing = [file for file in _PUBLISHED[name][1] if not _has(place, file)]
    files = f"; {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there"
    return (
        f"{name}: only a part of what is published, {len(train):,} of {published_train:,} training "
        f"and {len(test):,} of {published_test:,} test images{files if missing else ''}."
    )


def _idx(folder: Path) -> tuple[Dataset, Dataset]:
    train_images, train_labels, test_images, test_labels = (folder / name for name in _IDX_FILES)
    return (
        load_idx(train_images, train_labels, classes=10),
        load_idx(test_images, test_labels, classes=10),
    )


# How the files of a published set are read, which there are, and in which folders of its archive
# they may lie.
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_PUBLISHED: dict[str, tuple[_Loader, tuple[str, ...], tuple[str, ...]]] = {
    "mnist": (_idx, _IDX_FILES, ("", "raw")),
    "fashion_mnist": (_idx, _IDX_FILES, ("", "raw")),
    "cifar10": (load_cifar10, (TEST_BATCH, *TRAIN_BATCHES), ("", "cifar-10-batches-bin")),
}


def _places(name: str, directory: Path) -> list[Path]:
    """Return where the files may be; first the folder of the set's name: two sets' are alike."""
    _, _, folders = _PUBLISHED[name]
    return [top / folder for top in (directory / name, directory) for folder in folders]


def _has(place: Path, file: str) -> bool:
    return (place / file).exists() or (place / f"{file}.gz").exists()
