"""`status.json`: what the agent is doing now, for `edge-sdk status` and for the application."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from edge_sdk.errors import ConfigError


def write_progress(state: Path, fields: dict[str, Any]) -> None:
    """Replace `status.json` in one step; not synced, as it means nothing after a power cut."""
    temporary = state / "status.json.tmp"
    temporary.write_text(json.dumps(fields, indent=1))
    temporary.rename(state / "status.json")


def read_progress(state: Path) -> dict[str, Any]:
    """Return the last `status.json`, with `running` saying whether the agent is alive."""
    path = state / "status.json"
    if not path.exists():
        return {"running": False, "state": "never started"}
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return {**fields, "running": is_running(state)}


def lock(state: Path) -> int:
    """Hold the state directory for this process; raises `ConfigError` if another agent does."""
    state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(10):  # `is_running` holds the lock for an instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return descriptor
    os.close(descriptor)
    raise ConfigError(f"another agent is running on {state}; stop it first")


def is_running(state: Path) -> bool:
    """Say whether an agent holds the state directory."""
    try:
        descriptor = os.open(state / "agent.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
