"""What every power reader is, and how its absence is told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

COMMAND_TIMEOUT_S = 5.0


class PowerSource(Protocol):
    """A sensor that is asked. `read` gives watts, or joules since some start where `is_counter`."""

    name: str
    covers: str
    is_counter: bool
    interval_s: float

    def read(self) -> float:
        """Return the present value; raises `SensorError`."""


@dataclass(frozen=True)
class Missing:
    """A kind of sensor that this device does not offer, why, and what would change that."""

    name: str
    reason: str
    remedy: str = ""


class SensorError(Exception):
    """A sensor that did not answer as it should; measuring goes on without this sample."""


RunCommand = Callable[[Sequence[str]], str]


def run_command(command: Sequence[str]) -> str:
    """Return a command's standard output; raises `SensorError` if it is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise SensorError(f"there is no command {command[0]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SensorError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[:200]
        raise SensorError(f"{' '.join(command)} failed: {said}")
    return done.stdout


def read_text(path: Path) -> str:
    """Return a sysfs file without its newline; raises `SensorError` naming it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise SensorError(f"{path}: {error.strerror}") from error


def read_integer(path: Path) -> int:
    """Return the integer in a sysfs file; raises `SensorError` naming it."""
    text = read_text(path)
    try:
        return int(text)
    except ValueError as error:
        raise SensorError(f"{path} holds {text[:40]!r}, no integer") from error
