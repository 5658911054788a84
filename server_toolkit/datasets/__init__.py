"""Labelled images in the formats in which they are published, checked before they are believed."""

from server_toolkit.datasets.catalogue import DATASETS, load_dataset
from server_toolkit.datasets.image_data import ImageData

__all__ = ["DATASETS", "ImageData", "load_dataset"]
