"""A simulation as its options describe it, and the images that each part gets."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edge_sdk.training.dataset import Dataset, Int64
from edge_sdk.training.partition import make_partition
from models import ModelSpec
from server_toolkit.datasets import ImageData
from server_toolkit.errors import ConfigError
from server_toolkit.simulate.federation import device_names
from server_toolkit.simulate.settings import FederationSettings

PARTITIONS = "iid, dirichlet:ALPHA or classes:N"


@dataclass(frozen=True, kw_only=True)
class SimulationPlan:
    """What decides a simulation's weights, beside the number of rounds.

    `images` and `test_images` are at most how many of all devices together and of the test set are
    used, 0 for all; `server_set_per_class` images are set apart before the devices get theirs.
    `partition` is `iid`, `dirichlet:ALPHA` or `classes:N`; `precision` is that of the devices'
    program, `schedule` that of hardening between rounds in `server.toml`.
    """

    dataset: str
    spec: ModelSpec
    devices: int
    partition: str
    images: int = 0
    test_images: int = 0
    server_set_per_class: int = 0
    precision: str = "fp32"
    schedule: str = "none"
    settings: FederationSettings

    def __post_init__(self) -> None:
        if self.precision != "fp32" and self.settings.engine == "stacked":
            raise ConfigError("the stacked engine computes in fp32; int8 needs the native one")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values of what changes the weights."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        settings = dataclasses.asdict(fields.pop("settings"))
        del settings["workers"]  # they change no bit
        return fields | {"spec": self.spec.to_dict()} | settings


@dataclass(frozen=True)
class Division:
    """Disjoint parts of a data set, fitted to the network: the devices' images by device."""

    shards: dict[str, Dataset]
    server_set: Dataset | None
    test: Dataset

    def sha256(self) -> str:
        """Return a hash over every image and label of the devices and where it went."""
        digest = hashlib.sha256()
        for device, shard in self.shards.items():
            digest.update(f"{device} {shard.pixels.shape} {shard.pixels.dtype}".encode())
            digest.update(shard.pixels.tobytes() + shard.labels.tobytes())
        return digest.hexdigest()


def divide(data: ImageData, plan: SimulationPlan) -> Division:
    """Draw the parts with the settings' seed; raises `ConfigError` where images are too few."""
    seed = plan.settings.seed
    rng = np.random.default_rng([seed, 0])
    train, test = data.train.fit_to(plan.spec), data.test.fit_to(plan.spec)
    server, rest = _server_set(train, plan.server_set_per_class, rng)
    pool = rng.permutation(rest)
    if plan.images > len(pool):
        raise ConfigError(f"--images {plan.images}: the devices have {len(pool)} images to share")
    kind, options = parse_partition(plan.partition)
    shares = make_partition(
        train.labels,
        device_names(plan.devices),
        kind=kind,
        seed=seed,
        indices=pool[: plan.images or None],
        **options,
    )
    if plan.test_images:
        order = np.random.default_rng([seed, 1]).permutation(len(test))
        test = test.subset(np.sort(order[: plan.test_images]))
    return Division(
        {device: train.subset(indices) for device, indices in shares.items()},
        train.subset(server) if len(server) else None,
        test,
    )


def parse_partition(
    text: str,
) -> tuple[Literal["iid", "dirichlet", "classes"], dict[str, Any]]:
    """Return `make_partition`'s kind and option; raises `ConfigError` for another text."""
    kind, _, value = text.partition(":")
    try:
        if text == "iid":
            return "iid", {}
        if kind == "dirichlet":
            return "dirichlet", {"alpha": float(value)}
        if kind == "classes":
            return "classes", {"classes_per_device": int(value)}
    except ValueError:
        pass
    raise ConfigError(f"--partition {text!r:.60}: choose {PARTITIONS}")


def _server_set(train: Dataset, per_class: int, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Return the sorted indices of `per_class` images of each class, and of all others."""
    taken: list[Int64] = [np.empty(0, np.int64)]
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        if len(members) <= per_class:
            raise ConfigError(
                f"--server-set-per-class {per_class}: class {label} has {len(members)} images"
            )
        taken.append(rng.permutation(members)[:per_class])
    server = np.sort(np.concatenate(taken))
    return server, np.setdiff1d(np.arange(len(train)), server)
