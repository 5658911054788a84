"""Distil: from the ledger's trajectories to a proxy set with its lineage."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.engine import DistillProgress, distill
from server_toolkit.distill.initial_images import ServerSet
from server_toolkit.errors import ConfigError
from server_toolkit.stages.workspace import Progress, Workspace

log = logging.getLogger(__name__)


def run_distill(
    workspace: Workspace,
    name: str,
    *,
    settings: DistillConfig,
    progress: Progress,
    device: str = "cpu",
) -> Path:
    """Write and record `proxy/NAME.safetensors` and return its path.

    Interrupted, it leaves a checkpoint beside it from which the same call carries on. A proxy set
    that was made from the same rounds and settings is left as it is. Raises `DistillationError` or
    `ConfigError`.
    """
    ledger = workspace.ledger
    server_set, server_set_sha256 = None, None
    if settings.start == "server_set":
        server_set, server_set_sha256 = _server_set(workspace)
    lineage = {
        "stage": "distill",
        "run": ledger.run,
        "settings": settings.to_dict(),
        "weights": _weights_sha256(workspace, settings),
        "server_set": server_set_sha256,
    }
    path = workspace.path("proxy", name)
    if workspace.made_from("proxy", name, lineage):
        log.info("proxy set %s is made already: %s", name, path)
        return path

    def report(state: DistillProgress) -> None:
        progress(state.iteration, state.iterations, f"match loss {state.match_loss:.3f}")

    checkpoint = workspace.checkpoint("proxy", name, lineage)
    proxy = distill(
        ledger.trajectories(),
        ledger.spec,
        config=settings,
        server_set=server_set,
        checkpoint=checkpoint,
        progress=report,
        ledger_id=ledger.run,
        device=device,
    )
    proxy.save(path)
    workspace.record("proxy", name, lineage)
    checkpoint.unlink(missing_ok=True)
    return path


def _server_set(workspace: Workspace) -> tuple[ServerSet, str]:
    path = workspace.server_set_path()
    if path is None:
        raise ConfigError(
            "start 'server_set' needs real images: name them in [data] server_set, "
            "or choose --start structured or noise"
        )
    data, sha256 = workspace.images(path)
    return ServerSet(data.images, data.labels), sha256


def _weights_sha256(workspace: Workspace, settings: DistillConfig) -> str:
    """Return a hash over everything that the segments can be cut from."""
    ledger = workspace.ledger
    last = ledger.latest_round()
    names = [ledger.weights_blob(t).sha256 for t in range(last + 1)]
    if settings.segment != "fleet":
        names += [
            row.blob_sha256
            for row in ledger.updates()
            if row.round < last and row.verdict == "accepted"
        ]
    return hashlib.sha256(" ".join(names).encode()).hexdigest()
