"""Harden: from the federated model and images that the server may use to a robust model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_sdk.protocol.part_file import write_durably
from edge_sdk.protocol.updates import encode_weights
from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden import HardenConfig, HardenProgress, harden
from server_toolkit.robust.harden_labels import Labels
from server_toolkit.robust.harden_log import HardenLog
from server_toolkit.stages.workspace import FEDAVG, Progress, Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HardenSettings(HardenConfig):
    """[harden] of the configuration: the method's settings, and what it takes from the run.

    `with_server_set` adds real images; the pipeline always does for the arm "trajsyn_server_set".
    With `label_source = "ensemble"` the teachers are `ensemble_size` federated models, evenly
    spaced from the share `ensemble_from` of the rounds to the newest.
    """

    with_server_set: bool = False
    ensemble_size: int = 4
    ensemble_from: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.ensemble_size <= 1000:
            raise ConfigError(f"ensemble_size is {self.ensemble_size}; it must be 1 to 1000")
        if not 0 <= self.ensemble_from <= 1:
            raise ConfigError(f"ensemble_from is {self.ensemble_from}; it must be 0 to 1")


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
    `settings.with_server_set` adds the configured server set. Beside the model goes the log
    `NAME.log.jsonl`, a line a step. Interrupted, it leaves a checkpoint from which the same call
    carries on. A model made from the same weights, images and settings is left as it is. Raises
    `ConfigError`, `LedgerError` or `HardeningError`.
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
    rounds: list[int] = []
    if settings.label_source == "ensemble":
        rounds = ensemble_rounds(workspace.ledger.latest_round(), settings)
    lineage = {
        "stage": "harden",
        "run": workspace.ledger.run,
        "start": start_sha256,
        "proxy": None if proxy is None else {"name": proxy, "sha256": proxy_sha256},
        "images": real_sha256,
        "teachers": [workspace.ledger.aggregate_blob(number).sha256 for number in rounds],
        "settings": settings.to_dict(),
    }
    path = workspace.path("model", name)
    if workspace.made_from("model", name, lineage):
        log.info("model %s is made already: %s", name, path)
        return path

    checkpoint = workspace.checkpoint("model", name, lineage)
    history = HardenLog(path.with_name(f"{name}.log.jsonl"))

    def report(state: HardenProgress) -> None:
        history.append(state)
        progress(state.step, state.steps, _summary(state))

    if proxy_set is not None:
        learned = settings.label_source == "learned"
        pixels, beside = proxy_set.images, real
        labels: Labels = proxy_set.labels if learned else proxy_set.hard_labels
    elif real is not None:
        pixels, beside, labels = real.images, None, real.labels
    result = harden(
        workspace.ledger.spec,
        start,
        pixels,
        labels,
        real=beside,
        config=settings,
        teacher=[workspace.ledger.aggregate_weights(number) for number in rounds] or None,
        checkpoint=checkpoint,
        progress=report,
        device=device,
    )
    history.write(result.history)
    if result.best_step is not None:
        log.info("model %s: the weights of step %d were the best", name, result.best_step)
    write_durably(path, encode_weights(result.weights, workspace.ledger.layout))
    workspace.record("model", name, lineage)
    checkpoint.unlink(missing_ok=True)
    return path


def ensemble_rounds(latest: int, settings: HardenSettings) -> list[int]:
    """Return the rounds whose aggregates are the teachers, in order, the newest last."""
    first = round(settings.ensemble_from * latest)
    points = np.linspace(latest, first, settings.ensemble_size).round().astype(int)
    return sorted({int(point) for point in points})


def _summary(state: HardenProgress) -> str:
    """Return one line's worth of a step."""
    text = f"loss {state.adversarial_loss:.3f} attacked"
    if state.clean_loss is not None:
        text += f", {state.clean_loss:.3f} clean"
    if state.held_out_accuracy is not None:
        text += f", {100 * state.held_out_accuracy:.1f} % robust on the held-out part"
    return text
