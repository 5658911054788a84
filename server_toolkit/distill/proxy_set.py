"""The proxy set: synthetic images, their labels, the learned step size, and their lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import ModelSpec, SpecError
from server_toolkit.distill.tensor_file import read_tensor_file, write_tensor_file
from server_toolkit.errors import ConfigError

FORMAT = "trajsyn-proxy-set"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 2**30

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ProxySet:
    """What distillation hands to hardening.

    `images` `(N, C, H, W) float32 in [0, 1]`; `labels` `(N, classes) float32`, rows summing to 1;
    `hard_labels` `(N,) int64`, the class each image was made for; `step_size` the student's learned
    one; `spec` the network, normalisation included. `metadata` is the lineage, JSON-ready: ledger,
    segments, rounds, devices, seed, config, match loss, start, software version. Raises
    `ConfigError` naming the field that is out of shape or range.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    hard_labels: npt.NDArray[np.int64]
    step_size: float
    spec: ModelSpec
    metadata: Mapping[str, Any]

    def __post_init__(self) -> None:
        count, side = len(self.images), self.spec.image_size
        for name, dtype, shape in (
            ("images", np.float32, (count, self.spec.channels, side, side)),
            ("labels", np.float32, (count, self.spec.classes)),
            ("hard_labels", np.int64, (count,)),
        ):
            array: Array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ConfigError(
                    f"{name}: {array.shape} {array.dtype}; expected {shape} {np.dtype(dtype)}"
                )
        if count == 0:
            raise ConfigError("images: the proxy set is empty")
        if not (self.images.min() >= 0 and self.images.max() <= 1):
            raise ConfigError("images: every pixel must be in [0, 1]")
        if not (self.labels.min() >= 0 and np.abs(self.labels.sum(axis=1) - 1).max() < 1e-4):
            raise ConfigError("labels: every row must be probabilities that sum to 1")
        if self.hard_labels.min() < 0 or self.hard_labels.max() >= self.spec.classes:
            raise ConfigError(f"hard_labels: must be from 0 to {self.spec.classes - 1}")
        if not 0 < self.step_size < np.inf:
            raise ConfigError(f"step_size: {self.step_size} must be finite and above 0")

    def joined_to(self, earlier: ProxySet) -> ProxySet:
        """Return the images of `earlier`, then these; step size and lineage are this set's.

        Raises `ConfigError` if the sets were made for different networks.
        """
        if earlier.spec != self.spec:
            raise ConfigError("proxy sets of different networks cannot be joined")
        return ProxySet(
            images=np.concatenate([earlier.images, self.images]),
            labels=np.concatenate([earlier.labels, self.labels]),
            hard_labels=np.concatenate([earlier.hard_labels, self.hard_labels]),
            step_size=self.step_size,
            spec=self.spec,
            metadata={**self.metadata, "joined_to": dict(earlier.metadata)},
        )

    def save(self, path: Path) -> None:
        """Write one self-describing safetensors file, replacing `path` whole or not at all."""
        tensors: dict[str, Array] = {
            "images": self.images,
            "labels": self.labels,
            "hard_labels": self.hard_labels,
        }
        fields = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "step_size": self.step_size,
            "model": self.spec.to_dict(),
            "metadata": dict(self.metadata),
        }
        write_tensor_file(path, tensors, fields)

    @classmethod
    def load(cls, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> ProxySet:
        """Read `save`'s file; raises `ConfigError` naming the file and the field that is wrong."""
        tensors, fields = read_tensor_file(path, max_bytes=max_bytes)
        expected = {"format", "format_version", "step_size", "model", "metadata"}
        if fields.get("format") != FORMAT:
            raise ConfigError(f"{path}: format is {fields.get('format')!r}, not {FORMAT!r}")
        if fields.get("format_version") != FORMAT_VERSION:
            raise ConfigError(
                f"{path}: format_version {fields.get('format_version')!r}; "
                f"this software reads {FORMAT_VERSION}"
            )
        odd = (set(fields) ^ expected) | (set(tensors) ^ {"images", "labels", "hard_labels"})
        if odd:
            raise ConfigError(f"{path}: unknown or missing fields {', '.join(sorted(odd))}")
        if type(fields["step_size"]) is not float or not isinstance(fields["model"], dict):
            raise ConfigError(f"{path}: step_size must be a number and model an object")
        if not isinstance(fields["metadata"], dict):
            raise ConfigError(f"{path}: metadata must be an object")
        try:
            return cls(
                images=tensors["images"],
                labels=tensors["labels"],
                hard_labels=tensors["hard_labels"],
                step_size=fields["step_size"],
                spec=ModelSpec.from_dict(fields["model"]),
                metadata=fields["metadata"],
            )
        except SpecError as error:
            raise ConfigError(f"{path}: model: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
