"""What the images of a hardening run should be classified as."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from models import ModelSpec
from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden_config import LabelSource

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]


class Teachers:
    """The mean answer of networks to clean images: (1 / K) Σ_k softmax(z_k(x) / T)."""

    def __init__(self, networks: Sequence[nn.Module], temperature: float) -> None:
        self._networks, self._temperature = networks, temperature

    def __call__(self, images: Tensor) -> Tensor:
        """Return probabilities `(N, classes)` for `(N, C, H, W)`."""
        with torch.no_grad():
            answers = [
                (network(images) / self._temperature).softmax(dim=1) for network in self._networks
            ]
            return torch.stack(answers).mean(dim=0)


def as_probabilities(labels: Labels, count: int, spec: ModelSpec, source: LabelSource) -> Tensor:
    """Return labels as `(N, classes) float32`; raise `ConfigError` for what does not fit."""
    if labels.shape == (count,) and labels.dtype == np.int64:
        if labels.min() < 0 or labels.max() >= spec.classes:
            raise ConfigError(f"labels must be from 0 to {spec.classes - 1}")
        return one_hot(torch.from_numpy(labels), spec.classes).float()
    if labels.shape != (count, spec.classes) or source == "hard":
        raise ConfigError(
            f"labels are {labels.shape} {labels.dtype}; label_source "
            f"{source!r} needs ({count},) int64"
            + ("" if source == "hard" else f" or ({count}, {spec.classes})")
        )
    if not (labels.min() >= 0 and np.abs(labels.sum(axis=1) - 1).max() < 1e-4):
        raise ConfigError("labels: every row must be probabilities that sum to 1")
    return torch.from_numpy(labels).float()
