"""The working directory: finished pieces, and the checkpoints of unfinished ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_sdk.protocol.part_file import write_durably
from server_toolkit.benchmark.piece import Piece
from server_toolkit.distill.tensor_file import Array, read_tensor_file, write_tensor_file
from server_toolkit.errors import ConfigError

MAX_TENSOR_BYTES = 2**34


@dataclass(frozen=True)
class Outcome:
    """What a piece gives: JSON-ready values and arrays."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A finished piece: its values, and the seconds of all processes that worked on it.

    `cpu_s` is processor time, `wall_s` what a clock showed; both include work that was lost when
    a process was killed only up to its last checkpoint.
    """

    values: Mapping[str, Any]
    cpu_s: float
    wall_s: float
    software: str
    device: str


class Store:
    """Pieces on disk, `pieces/KEY.json` with `pieces/KEY.safetensors` where there are arrays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pieces = directory / "pieces"
        self._checkpoints = directory / "checkpoints"
        for path in (self._pieces, self._checkpoints):
            path.mkdir(parents=True, exist_ok=True)

    def done(self, piece: Piece) -> bool:
        """Return whether the piece is finished; its JSON file is written last."""
        return self._path(piece, "json").exists()

    def available(self, piece: Piece) -> bool:
        """Return whether the arrays of a finished piece are there, for others to read."""
        return self.done(piece) and self._path(piece, "safetensors").exists()

    def discard_tensors(self, piece: Piece) -> None:
        """Free the space of arrays that nobody reads any more; what is known of it stays."""
        self._path(piece, "safetensors").unlink(missing_ok=True)

    def record(self, piece: Piece) -> Record:
        """Return what is known of a finished piece; raises `ConfigError` naming a damaged file."""
        path = self._path(piece, "json")
        try:
            content = json.loads(path.read_bytes())
            return Record(**content["record"])
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: damaged: {error}; remove it and run again") from error

    def tensors(self, piece: Piece) -> dict[str, Array]:
        """Return the arrays of a finished piece; raises `ConfigError` naming a damaged file."""
        return read_tensor_file(self._path(piece, "safetensors"), max_bytes=MAX_TENSOR_BYTES)[0]

    def finish(self, piece: Piece, outcome: Outcome, record: Record) -> None:
        """Keep a piece's outcome and drop its checkpoints."""
        if outcome.tensors:
            write_tensor_file(
                self._path(piece, "safetensors"), outcome.tensors, {"label": piece.label}
            )
        content = {
            "kind": piece.kind,
            "label": piece.label,
            "settings": piece.settings,
            "inputs": {name: source.key for name, source in piece.inputs.items()},
            "record": asdict(record),
        }
        write_durably(self._path(piece, "json"), json.dumps(content, indent=1).encode())
        for path in self._checkpoints.glob(f"{piece.key}.*"):
            path.unlink(missing_ok=True)

    def checkpoint(self, piece: Piece, name: str = "state") -> Path:
        """Return where an unfinished piece keeps a state; the file may not exist."""
        return self._checkpoints / f"{piece.key}.{name}"

    def spent(self, piece: Piece) -> tuple[float, float]:
        """Return the processor and wall seconds of earlier runs that were interrupted."""
        try:
            cpu_s, wall_s = json.loads(self.checkpoint(piece, "spent").read_bytes())
        except (OSError, ValueError):
            return 0.0, 0.0
        return float(cpu_s), float(wall_s)

    def note_spent(self, piece: Piece, cpu_s: float, wall_s: float) -> None:
        """Remember the seconds of an unfinished piece."""
        write_durably(self.checkpoint(piece, "spent"), json.dumps([cpu_s, wall_s]).encode())

    def _path(self, piece: Piece, suffix: str) -> Path:
        return self._pieces / f"{piece.key}.{suffix}"
