"""The history of a hardening run as a file: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden_state import HardenProgress


class HardenLog:
    """Writes every step to `path` as it is done, so that `tail -f` follows a run.

    Raises `ConfigError` where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, entry: HardenProgress) -> None:
        """Add one step; the first of a run replaces what an earlier run left."""
        self._write("w" if entry.step == 1 else "a", [entry])

    def write(self, history: Iterable[HardenProgress]) -> None:
        """Replace the file by a whole history: a resumed run has written some steps twice."""
        self._write("w", history)

    def _write(self, mode: str, entries: Iterable[HardenProgress]) -> None:
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(entry.to_dict()) + "\n" for entry in entries)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written: {error.strerror}") from error
