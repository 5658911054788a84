"""Harden: from the federated model and images that the server may use to a robust model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.part_file import write_durably
from edge_sdk.protocol.updates import encode_weights
from edge_sdk.training.dataset import Dataset
from server_toolkit.distill.proxy_set import ProxySet
from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden import HardenConfig, HardenProgress, harden
from server_toolkit.stages.workspace import FEDAVG, Progress, Workspace

log = logging.getLogger(__name__)

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class HardenSettings(HardenConfig):
    """[harden] of the configuration: the method's settings, and whether to add real images.

    The pipeline always adds them for the arm "trajsyn_server_set".
    """

    with_server_set: bool = False


def run_harden(
    workspace: Workspace,
    name: str,
    *,
    proxy: str | None,
    images: Path | None = None,
    settings: HardenSettings,
    progress: Progress,
    device: str = "cpu",
) -> Path:
    """Harden the federated model, write and record `models/NAME.safetensors`, return its path.

    It trains on the proxy set called `proxy`, on the real `images` of an npz file, or on both;
    `settings.with_server_set` adds the configured server set. Interrupted, it leaves a checkpoint
    from which the same call carries on. A model made from the same weights, images and settings
    is left as it is. Raises `ConfigError` or `LedgerError`.
    """
    if name == FEDAVG:
        raise ConfigError(f"{FEDAVG!r} is the undefended model; choose another --name")
    if settings.with_server_set:
        if images is not None:
            raise ConfigError("give real images once: --images or --with-server-set")
        images = workspace.server_set_path()
        if images is None:
            raise ConfigError(
                f"{workspace.config.file}: hardening with the server set needs [data] server_set"
            )
    proxy_set, proxy_sha256 = (None, None) if proxy is None else workspace.proxy(proxy)
    real, real_sha256 = (None, None) if images is None else workspace.images(images)
    if proxy_set is None and real is None:
        raise ConfigError("there is nothing to harden on: give --proxy, --images or both")

    start, start_sha256 = workspace.weights(FEDAVG)
    lineage = {
        "stage": "harden",
        "run": workspace.ledger.run,
        "start": start_sha256,
        "proxy": None if proxy is None else {"name": proxy, "sha256": proxy_sha256},
        "images": real_sha256,
        "settings": settings.to_dict(),
    }
    path = workspace.path("model", name)
    if workspace.made_from("model", name, lineage):
        log.info("model %s is made already: %s", name, path)
        return path

    def report(state: HardenProgress) -> None:
        text = f"loss {state.adversarial_loss:.3f} attacked, {state.clean_loss:.3f} clean"
        progress(state.step, state.steps, text)

    pixels, labels = _training_set(
        proxy_set,
        real,
        soft=settings.label_source == "learned",
        classes=workspace.ledger.spec.classes,
    )
    checkpoint = workspace.checkpoint("model", name, lineage)
    result = harden(
        workspace.ledger.spec,
        start,
        pixels,
        labels,
        config=settings,
        checkpoint=checkpoint,
        progress=report,
        device=device,
    )
    write_durably(path, encode_weights(result.weights, workspace.ledger.layout))
    workspace.record("model", name, lineage)
    checkpoint.unlink(missing_ok=True)
    return path


def _training_set(
    proxy: ProxySet | None, real: Dataset | None, *, soft: bool, classes: int
) -> tuple[npt.NDArray[np.float32], Labels]:
    """Return images and labels of both sources; soft labels of a real image are its class.

    Beside a proxy set the real images are repeated until they are about as many: measured better
    than once each (docs/robustness.md).
    """
    if proxy is not None and real is not None:
        times = max(1, round(len(proxy.images) / len(real)))
        real = real.subset(np.tile(np.arange(len(real)), times))
    pixels = [source.images for source in (proxy, real) if source is not None]
    if soft:
        learned = [] if proxy is None else [proxy.labels]
        given = [] if real is None else [np.eye(classes, dtype=np.float32)[real.labels]]
        return np.concatenate(pixels), np.concatenate(learned + given)
    made_for = [] if proxy is None else [proxy.hard_labels]
    given_classes = [] if real is None else [real.labels]
    return np.concatenate(pixels), np.concatenate(made_for + given_classes)
