"""The directory of a new run: keys, server.toml, the devices' program, the first weights."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sdk.protocol.signing import create_key, public_key_text
from server_toolkit.config import load_config
from server_toolkit.errors import ConfigError
from server_toolkit.ledger import Ledger


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Give a draft beside `directory` that takes its place when the block ends well.

    What interrupts the block leaves nothing behind; a power cut behind it leaves all. Raises
    `ConfigError` where `directory` exists and is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not empty; choose a new directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield draft
        for path in (*draft.rglob("*"), draft):
            _fsync(path)
        try:
            draft.rename(directory)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise ConfigError(f"another process has made {directory} in the meantime") from error
        _fsync(directory.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fill_run_directory(directory: Path) -> str:
    """Make all that a run needs beside the `server.toml` in `directory`; takes seconds.

    Returns the server's public key. Raises `ConfigError` for a mistake in the file.
    """
    config = load_config(directory / "server.toml")  # before the slow part: it finds mistakes
    from edge_sdk.export import TRAINING_PRECISIONS, training_program
    from models.networks import build_model, flat_parameters

    spec = config.model.spec
    (directory / "programs").mkdir()
    program = directory / "programs" / "training.program"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about torch's own code
        training_program(
            spec,
            micro_batch=config.training.micro_batch,
            **TRAINING_PRECISIONS[config.training.precision],
        ).save(program)
    weights = flat_parameters(build_model(spec, seed=config.training.seed))
    (directory / "keys").mkdir(mode=0o700)
    key = create_key(directory / "keys" / "server.key")
    ledger = Ledger.create(
        directory, run=config.run.name, spec=spec, weights=weights, program=program.read_bytes()
    )
    ledger.close()
    return public_key_text(key.public_key())
