"""What one device does in a round, and what every engine returns for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_sdk.training.dataset import Dataset
from models.layout import Flat


@dataclass(frozen=True)
class LocalJob:
    """One device's work: from `start`, on `dataset`, shuffled by `seed`.

    `correction`, a flat vector, is added to the gradient of every step (SCAFFOLD); None: nothing.
    """

    device: str
    start: Flat
    dataset: Dataset
    seed: int
    correction: Flat | None = None


@dataclass(frozen=True)
class LocalResult:
    """Where the work ended, `(size,) float32`, and what it cost; losses are means over an epoch."""

    weights: Flat
    steps: int
    loss_first_epoch: float
    loss_last_epoch: float
    wall_s: float
    cpu_s: float


class LocalEngine(Protocol):
    """A way of doing the work of many devices."""

    def train(
        self, jobs: Sequence[LocalJob], *, done: Callable[[int], None] = ...
    ) -> list[LocalResult]:
        """Return a result for every job, in their order; raises `ConfigError` on divergence.

        `done` is told how many jobs are done.
        """
