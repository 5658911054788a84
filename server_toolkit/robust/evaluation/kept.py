"""Finished batches on disk, so that an interrupted evaluation carries on where it was."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from edge_sdk.protocol.part_file import write_durably
from server_toolkit import __version__
from server_toolkit.robust import attacks
from server_toolkit.robust.evaluation.judge import Kept


@dataclass(frozen=True)
class KeptBatches:
    """A folder of small .npz files, one a batch and attack, named by what they were made from.

    `subject` names everything that is the same for all batches: the hashes of model, surrogate,
    images and labels, and the device. Files of other subjects or of other attack code lie in the
    same folder and are never read. The folder may be deleted at any time.
    """

    directory: Path
    subject: str

    def load(self, key: str) -> Kept | None:
        """Return what was kept under this key; None if nothing or only a damaged file was."""
        try:
            with np.load(self._path(key), allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def store(self, key: str, values: Kept) -> None:
        """Keep these arrays under this key, whole or not at all."""
        self.directory.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **values)  # type: ignore[arg-type]
        write_durably(self._path(key), buffer.getvalue())

    def _path(self, key: str) -> Path:
        text = "\n".join((__version__, _attack_code(), self.subject, key))
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


@cache
def _attack_code() -> str:
    """Return a hash of the attacks' source: another program makes other results."""
    digest = hashlib.sha256()
    for folder in (Path(attacks.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
