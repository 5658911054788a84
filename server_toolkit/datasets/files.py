"""Opening files that others made: only regular ones, with their size known before a read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from server_toolkit.errors import ConfigError


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Give an open file and its size in bytes.

    Raises `ConfigError` naming what cannot be read or is no regular file: a pipe would never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path} is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file, status.st_size
