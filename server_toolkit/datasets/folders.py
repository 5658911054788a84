"""Labelled image folders: `train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png` alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_sdk.training.dataset import Dataset, Int64
from edge_sdk.training.sources import IMAGE_FORMATS, IMAGE_SUFFIXES
from edge_sdk.training.sources import load_folder as load_classes
from server_toolkit.datasets.files import open_regular
from server_toolkit.errors import ConfigError

MAX_SIDE = 512  # of the images that a network takes
TEST_SHARE = 0.2
FEWEST_OF_A_CLASS = 3  # whose fifth, rounded, is an image
GREY_MODES = ("1", "L", "LA", "I", "I;16")
PARTS = ("train", "test")


def load_image_folder(root: Path, *, seed: int) -> tuple[Dataset, Dataset]:
    """Return training and test images of a folder, grey where every file is grey, else RGB.

    With the folders `train` and `test` in it they are the parts, with the same classes in both;
    else a fifth of every class, drawn with `seed`, is the test set. Raises `ConfigError` naming
    the file or folder that does not fit.
    """
    if not root.is_dir():
        raise ConfigError(f"{root} is no folder")
    parts = [root / name for name in PARTS if (root / name).is_dir()]
    if len(parts) == 1:
        raise ConfigError(f"{root} has {parts[0].name} alone; it needs both {' and '.join(PARTS)}")
    channels = _channels(parts or [root])
    if not parts:
        whole = load_classes(root, channels=channels)
        if min(counts := np.bincount(whole.labels, minlength=whole.classes)) < FEWEST_OF_A_CLASS:
            name = sorted(p.name for p in root.iterdir() if p.is_dir())[int(counts.argmin())]
            raise ConfigError(
                f"{root / name} has {counts.min()} images; {FEWEST_OF_A_CLASS} are the fewest of "
                f"which some can be set apart for the test: add images, or folders "
                f"{' and '.join(PARTS)}"
            )
        train, test = split_by_class(whole.labels, share=TEST_SHARE, seed=seed)
        return whole.subset(train), whole.subset(test)
    names = [{p.name for p in part.iterdir() if p.is_dir()} for part in parts]
    if odd := sorted(names[0] ^ names[1]):
        raise ConfigError(f"{root}: {', '.join(odd)[:200]} must be a class of both train and test")
    train_set, test_set = (load_classes(part, channels=channels) for part in parts)
    if train_set.pixels.shape[1:] != test_set.pixels.shape[1:]:
        raise ConfigError(f"{root}: images of train and test differ in size; bring all to one size")
    return train_set, test_set


def split_by_class(labels: Int64, *, share: float, seed: int) -> tuple[Int64, Int64]:
    """Return the sorted indices of the rest and of `share` of every class, drawn with `seed`."""
    rng = np.random.default_rng(seed)
    taken = []
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        taken.append(order[: round(share * len(order))])
    part = np.sort(np.concatenate(taken))
    return np.setdiff1d(np.arange(len(labels)), part), part


def _channels(parts: list[Path]) -> int:
    """Look at every file's header: 1 where all are grey, else 3."""
    from PIL import Image

    grey, found = True, False
    for path in (p for part in parts for p in _image_files(part)):
        with open_regular(path) as (file, _):
            try:
                with Image.open(file, formats=IMAGE_FORMATS) as image:
                    size, mode = image.size, image.mode
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ConfigError(f"{path} is no readable image: {error}") from error
        if max(size) > MAX_SIDE or size[0] != size[1]:
            raise ConfigError(
                f"{path} is {size[0]}x{size[1]}; networks take square images of at most "
                f"{MAX_SIDE} pixels"
            )
        grey, found = grey and mode in GREY_MODES, True
    if not found:
        raise ConfigError(
            f"{parts[0]}: no {', '.join(IMAGE_SUFFIXES)} files in folders, one a class"
        )
    return 1 if grey else 3


def _image_files(root: Path) -> Iterator[Path]:
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        yield from sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
