"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server_toolkit.errors import ConfigError

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The run's server.toml.", metavar="FILE")
]
DEFAULT_CONFIG = Path("server.toml")


def check_output_file(file: Path | None) -> Path | None:
    """Refuse, before the work begins, a file that cannot be written at its end."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ConfigError(f"--json {file} cannot be written; name a file in an existing folder")
    return file


JsonFileOption = Annotated[
    Path | None,
    typer.Option(
        "--json", help="Write the result to this file.", metavar="FILE", callback=check_output_file
    ),
]
