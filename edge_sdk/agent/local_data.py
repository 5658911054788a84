"""The device's own labelled images, as `device.toml` names them."""

from __future__ import annotations

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.errors import ConfigError
from edge_sdk.training.dataset import Dataset, load_digits, load_folder, load_npz
from edge_sdk.training.partition import load_partition
from models import ModelSpec


def load_local_data(config: LoadedConfig, spec: ModelSpec) -> Dataset:
    """Return the images this device may see, fitted to the model's input.

    Raises `ConfigError` naming the file and what to change.
    """
    data = config.settings.data
    if data.kind == "digits":
        dataset = load_digits(spec.image_size)
    elif data.path is None:
        raise ConfigError(f"{config.file}: [data] kind {data.kind!r} needs a path")
    elif data.kind == "npz":
        dataset = load_npz(config.resolve(data.path))
    else:
        dataset = load_folder(config.resolve(data.path))
    if data.partition is not None:
        indices = load_partition(
            config.resolve(data.partition), config.settings.device, size=len(dataset.labels)
        )
        dataset = dataset.subset(indices)
    if not len(dataset.labels):
        raise ConfigError(f"{config.file}: [data] gives this device no image")
    return dataset.fit_to(spec)
