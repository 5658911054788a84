"""Where a piece is worked on: its data, its files, the clock, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import ModelSpec
from server_toolkit.benchmark.data import Split, load, split
from server_toolkit.benchmark.piece import Piece
from server_toolkit.benchmark.store import Store
from server_toolkit.distill.initial_images import ServerSet

NOTE_EVERY_S = 10.0


class OutOfTimeError(Exception):
    """The time budget is used up; the piece left a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What every worker of a run is given.

    `sources` maps a data set's digest to its name and directory. `stop_at_s` is a `time.monotonic`
    reading after which unfinished pieces stop at their next checkpoint.
    """

    directory: Path
    sources: Mapping[str, tuple[str, Path | None]]
    device: str = "cpu"
    threads: int = 1
    stop_at_s: float | None = None


class Workplace:
    """One piece being worked on."""

    def __init__(self, piece: Piece, workshop: Workshop) -> None:
        self.piece, self.store, self.device = piece, Store(workshop.directory), workshop.device
        self._workshop = workshop
        self._before = self.store.spent(piece)
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        self._noted_s = self._wall_s

    @property
    def spec(self) -> ModelSpec:
        """The piece's network."""
        return ModelSpec.from_dict(self.piece.settings["spec"])

    def split(self) -> Split:
        """Return the piece's parts of its data set."""
        data: Mapping[str, Any] = self.piece.settings["data"]
        name, directory = self._workshop.sources[data["digest"]]
        return _split(
            name,
            directory,
            data["seed"],
            data["device_images"],
            data["server_pool"],
            data.get("test_images"),
        )

    def server_set(self) -> ServerSet | None:
        """Return the server's images, the first of its pool; None where the piece has none."""
        size = self.piece.settings["server_images"]
        if not size:
            return None
        pool = self.split().server
        chosen = pool.subset(np.arange(size * pool.classes))
        return ServerSet(chosen.images, chosen.labels)

    def spent(self) -> tuple[float, float]:
        """Return the processor and wall seconds so far, those of interrupted runs included."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        return (
            self._before[0] + time.process_time() - self._cpu_s,
            self._before[1] + time.perf_counter() - self._wall_s,
        )

    @property
    def time_is_up(self) -> bool:
        """Whether the piece should stop at its next checkpoint."""
        stop_at_s = self._workshop.stop_at_s
        return stop_at_s is not None and time.monotonic() > stop_at_s

    def tick(self) -> None:
        """Note the time now and then; raise `OutOfTimeError` where none is left.

        To be called as often as it can, best just after a checkpoint.
        """
        now_s = time.perf_counter()
        if self.time_is_up or now_s - self._noted_s >= NOTE_EVERY_S:
            self.store.note_spent(self.piece, *self.spent())
            self._noted_s = now_s
        if self.time_is_up:
            raise OutOfTimeError


@lru_cache(maxsize=4)
def _split(
    name: str,
    directory: Path | None,
    seed: int,
    device_images: int | None,
    server_pool: int,
    test_images: int | None,
) -> Split:
    return split(
        load(name, directory),
        seed=seed,
        device_images=device_images,
        server_images_per_class=server_pool,
        test_images=test_images,
    )
