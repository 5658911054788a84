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
IDX_PARTS = {"train": "train", "test": "t10k"}

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
        train, test = _PUBLISHED[name](directory, name)
    return ImageData(name, train, test, *USUAL[name])


def _digits(seed: int) -> tuple[Dataset, Dataset]:
    digits = load_digits(DIGITS_SIDE)
    pixels = np.rint(digits.images * 255).astype(np.uint8)
    whole = Dataset(pixels, digits.labels, digits.classes)
    train, test = split_by_class(whole.labels, share=DIGITS_TEST_SHARE, seed=seed)
    return whole.subset(train), whole.subset(test)


def _idx(directory: Path, name: str) -> tuple[Dataset, Dataset]:
    first = f"{IDX_PARTS['train']}-images-idx3-ubyte"
    places = [directory / name, directory / name / "raw", directory]
    folder = _place(places, (first, f"{first}.gz"), f"the four files of {name}")

    def part(prefix: str) -> Dataset:
        images, labels = (f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        return load_idx(folder / images, folder / labels, classes=10)

    return part(IDX_PARTS["train"]), part(IDX_PARTS["test"])


def _cifar10(directory: Path, name: str) -> tuple[Dataset, Dataset]:
    archive = "cifar-10-batches-bin"
    places = [directory / name / archive, directory / name, directory / archive, directory]
    return load_cifar10(_place(places, (TEST_BATCH,), "the binary version of CIFAR-10"))


def _place(places: list[Path], files: tuple[str, ...], what: str) -> Path:
    """Return the first folder that holds one of the files."""
    for place in places:
        if any((place / file).exists() for file in files):
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(f"{what} are not there: no {files[0]} in {looked}")


_PUBLISHED: dict[str, Callable[[Path, str], tuple[Dataset, Dataset]]] = {
    "mnist": _idx,
    "fashion_mnist": _idx,
    "cifar10": _cifar10,
}
