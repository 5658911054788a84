"""Where and with how many threads a stage computes."""

from __future__ import annotations

from typing import Annotated

import typer

from server_toolkit.errors import ConfigError

ThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves the choice to torch.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1 ... or auto.", metavar="DEVICE")
]


def choose_device(device: str, *, threads: int) -> str:
    """Set torch's threads and return the torch device; raises `ConfigError` if there is none."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {device} cannot be used here: {reason}") from error
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device} cannot be used: choose cpu, cuda, cuda:N or auto")
    return device
