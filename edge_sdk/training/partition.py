"""Which examples belong to which simulated device, as a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError, ProtocolError
from edge_sdk.protocol.schema import parse_json

FORMAT = "trajsyn-partition-1"
MAX_FILE_BYTES = 64 << 20
MAX_DRAWS = 100

Int64 = npt.NDArray[np.int64]


def make_partition(
    labels: Int64,
    devices: Sequence[str],
    *,
    kind: Literal["iid", "dirichlet", "classes"],
    seed: int,
    alpha: float = 0.5,
    classes_per_device: int = 2,
    indices: Int64 | None = None,
) -> dict[str, Int64]:
    """Share out the examples at `indices` (all by default); every device gets at least one.

    `iid` deals them out at random in equal shares. `dirichlet` draws for each class how much each
    device gets; the smaller `alpha`, the fewer classes a device sees (Hsu et al. 2019). Raises
    `ConfigError` where that is impossible.
    """
    pool = np.arange(len(labels)) if indices is None else indices
    if not devices or len(set(devices)) != len(devices):
        raise ConfigError("a partition needs device names, each once")
    if len(pool) < len(devices):
        raise ConfigError(f"{len(pool)} examples are too few for {len(devices)} devices")
    rng = np.random.Generator(np.random.PCG64(seed))
    if kind == "iid":
        shares = np.array_split(rng.permutation(pool), len(devices))
    elif kind == "classes":
        shares = _few_classes(labels, pool, len(devices), classes_per_device, rng)
    else:
        if not 0 < alpha < math.inf:
            raise ConfigError(f"alpha is {alpha}; it must be above 0")
        shares = _dirichlet(labels, pool, len(devices), alpha, rng)
    return {d: np.sort(s).astype(np.int64) for d, s in zip(devices, shares, strict=True)}


def _dirichlet(
    labels: Int64, pool: Int64, count: int, alpha: float, rng: np.random.Generator
) -> list[Int64]:
    for _ in range(MAX_DRAWS):
        shares: list[list[Int64]] = [[] for _ in range(count)]
        for label in np.unique(labels[pool]):
            members = rng.permutation(pool[labels[pool] == label])
            ends = np.cumsum(rng.dirichlet(np.full(count, alpha)))[:-1] * len(members)
            for share, part in zip(shares, np.split(members, ends.astype(int)), strict=True):
                share.append(part)
        joined = [np.concatenate(share) for share in shares]
        if all(len(share) for share in joined):
            return joined
    raise ConfigError(
        f"with alpha {alpha}, {len(pool)} examples left some of {count} devices without any in "
        f"{MAX_DRAWS} draws; raise alpha or take fewer devices"
    )


def _few_classes(
    labels: Int64, pool: Int64, count: int, classes_per_device: int, rng: np.random.Generator
) -> list[Int64]:
    classes = np.unique(labels[pool])
    if not 1 <= classes_per_device <= len(classes):
        raise ConfigError(f"{classes_per_device} classes a device; there are {len(classes)}")
    if count * classes_per_device < len(classes):
        raise ConfigError(
            f"{count} devices with {classes_per_device} classes each leave some of {len(classes)} "
            "classes to nobody; take more of either"
        )
    holders: list[list[int]] = [[] for _ in classes]
    for device in range(count):
        taken = np.array([len(h) for h in holders])
        order = np.lexsort((rng.random(len(classes)), taken))  # those with the fewest holders first
        for index in order[:classes_per_device]:
            holders[index].append(device)
    shares: list[list[Int64]] = [[] for _ in range(count)]
    for label, owners in zip(classes, holders, strict=True):
        members = rng.permutation(pool[labels[pool] == label])
        if len(members) < len(owners):
            raise ConfigError(
                f"class {label} has {len(members)} examples for {len(owners)} devices; take fewer "
                "devices or fewer classes a device"
            )
        for owner, part in zip(owners, np.array_split(members, len(owners)), strict=True):
            shares[owner].append(part)
    return [np.concatenate(share) for share in shares]


def write_partition(path: Path | str, devices: Mapping[str, Int64], *, dataset: str) -> None:
    """Write the file; `dataset` is a name for the reader."""
    content = {
        "format": FORMAT,
        "dataset": dataset,
        "devices": {name: indices.tolist() for name, indices in devices.items()},
    }
    Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")


def load_partition(path: Path | str, device: str, *, examples: int) -> Int64:
    """Return the indices of `device` in a data set of `examples`; raises `ConfigError`.

    No index may occur twice, on one device or on two.
    """
    try:
        data = Path(path).read_bytes()
        content = parse_json(data, max_bytes=MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ProtocolError as error:
        raise ConfigError(f"{path}: {error}") from error
    devices = content.get("devices")
    if content.get("format") != FORMAT or not isinstance(devices, dict):
        raise ConfigError(f"{path} is no partition file; its format must be {FORMAT}")
    if device not in devices:
        raise ConfigError(f"{path} has no device {device!r}; it has {', '.join(sorted(devices))}")
    seen: set[int] = set()
    for name, indices in devices.items():
        if not isinstance(indices, list):
            raise ConfigError(f"{path}: the entry of {name} is no list")
        for index in indices:
            if type(index) is not int or not 0 <= index < examples:
                raise ConfigError(
                    f"{path}: {name} has {index!r}; expected integers from 0 to {examples - 1}"
                )
            if index in seen:
                raise ConfigError(f"{path}: example {index} of {name} is given out twice")
            seen.add(index)
    if not devices[device]:
        raise ConfigError(f"{path}: {device} has no examples")
    return np.array(devices[device], np.int64)
