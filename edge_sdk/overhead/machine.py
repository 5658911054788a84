"""Which machine this is."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import edge_sdk
from edge_sdk.overhead.values import Value, absent, measured


def machine_facts(root: Path = Path("/")) -> dict[str, Value]:
    """Return model, processor, cores, memory, system and versions."""
    return {
        "model": _first_text(
            root,
            "proc/device-tree/model",
            "sys/devices/virtual/dmi/id/product_name",
            nothing="neither a device tree nor DMI names the machine",
        ),
        "processor": _field(root, "proc/cpuinfo", "model name"),
        "cores": measured(usable_cores(), "1", "sched_getaffinity"),
        "memory": _field(root, "proc/meminfo", "MemTotal"),
        "architecture": measured(platform.machine(), "text", "uname"),
        "kernel": measured(platform.release(), "text", "uname"),
        "python": measured(platform.python_version(), "text", "platform"),
        "trajsyn": measured(edge_sdk.__version__, "text", "edge_sdk.__version__"),
    }


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0))


def load_per_core() -> Value:
    """Return how busy the machine was over the last minute."""
    return measured(os.getloadavg()[0] / usable_cores(), "1", "load average of 1 min / cores")


def _first_text(root: Path, *paths: str, nothing: str) -> Value:
    for path in paths:
        try:
            text = (root / path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            continue
        if text:
            return measured(text, "text", f"/{path}")
    return absent("text", nothing)


def _field(root: Path, path: str, name: str) -> Value:
    """Return the field of a `name : value` file."""
    try:
        lines = (root / path).read_text(errors="replace").splitlines()
    except OSError as error:
        return absent("text", f"/{path}: {error.strerror}")
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return measured(value.strip(), "text", f"/{path}")
    return absent("text", f"/{path} has no {name}")
