"""Files that a command writes at its end: whether they can be written is asked at its start."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.errors import ConfigError


def require_writable(*paths: Path | None) -> None:
    """Raise `ConfigError` for a path that cannot be written; what it holds stays as it is."""
    for path in paths:
        if path is None:
            continue
        existed = path.exists()
        try:
            with path.open("ab"):
                pass
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        if not existed:
            path.unlink()
