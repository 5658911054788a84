"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The run's server.toml.", metavar="FILE")
]
DEFAULT_CONFIG = Path("server.toml")
