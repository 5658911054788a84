"""A data set with its two parts, as every loader returns it."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.training.dataset import Dataset


@dataclass(frozen=True)
class ImageData:
    """Training and test images, `(N, C, H, W) uint8` each, of the same shape and classes.

    `mean` and `std` are those that are usual for the data set, a number a channel of the pixels in
    [0, 1]; 0.5 and 0.25 where nothing is usual. `remark` says what of a published set is missing.
    """

    name: str
    train: Dataset
    test: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    remark: str | None = None
