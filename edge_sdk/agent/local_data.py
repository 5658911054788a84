"""The device's own labelled images, as `device.toml` names them."""

from __future__ import annotations

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.errors import ConfigError
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.partition import load_partition
from edge_sdk.training.sources import load_dataset
from models import ModelSpec


def load_local_data(config: LoadedConfig, spec: ModelSpec) -> Dataset:
    """Return the images this device may see, fitted to the model's input.

    Raises `ConfigError` naming the file and what to change.
    """
    data = config.settings.data
    path = None if data.path is None else config.resolve(data.path)
    dataset = load_dataset(data.kind, path, spec)
    if data.partition is not None:
        partition = config.resolve(data.partition)
        indices = load_partition(partition, config.settings.device, examples=len(dataset))
        dataset = dataset.subset(indices)
    if not len(dataset):
        raise ConfigError(f"{config.file}: [data] gives this device no image")
    return dataset
