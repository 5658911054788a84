"""One round on the device: weights and program in, an encoded update and its offer out."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.agent.duty_cycle import DutyCycle
from edge_sdk.agent.local_data import load_local_data
from edge_sdk.errors import ConfigError, ProtocolError
from edge_sdk.protocol.messages import BlobRef, Offer, Task
from edge_sdk.protocol.updates import decode_weights, encode_update
from edge_sdk.runtime.program_file import ProgramFile
from edge_sdk.training.round_seed import round_seed
from edge_sdk.training.trainer import train
from models import layout_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRound:
    """What a finished round leaves: bytes and offer for the outbox, error feedback for the next."""

    task: Task
    data: bytes
    offer: Offer
    residual: npt.NDArray[np.float32]


def train_round(
    task: Task,
    *,
    config: LoadedConfig,
    program_path: Path,
    base_path: Path,
    residual: npt.NDArray[np.float32] | None,
    should_stop: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> TrainedRound | None:
    """Train one round; None if `should_stop` said so.

    `residual` is the error feedback of the round before. Raises `ProtocolError` if program and
    weights do not belong to the task, `ConfigError` if training with its settings diverges,
    `OSError` if a file is gone.
    """
    device = config.settings.device
    # Linux knows niceness per thread: this one trains, the others keep the connection alive.
    # Niceness that somebody gave the whole agent stays: only root may lower it.
    niceness = max(config.settings.compute.niceness, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    program = ProgramFile.load(program_path)
    layout = layout_of(program.spec)
    if layout.fingerprint != task.layout or program.kind != "training":
        raise ProtocolError(f"the program of round {task.round} is for another network")
    start = decode_weights(base_path.read_bytes(), layout)
    dataset = load_local_data(config, program.spec)
    settings = task.training
    result = train(
        program,
        start,
        dataset,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        proximal_mu=settings.proximal_mu,
        seed=round_seed(settings.seed, run=task.run, device=device, round=task.round),
        threads=config.settings.compute.threads,
        should_stop=DutyCycle(config.settings.compute.duty_cycle, should_stop),
        on_step=lambda step, steps, _loss: progress(step, steps),
    )
    if not result.completed:
        return None
    whole = residual is not None and residual.shape == start.shape
    if residual is not None and not (whole and np.isfinite(residual).all()):
        log.error("the error feedback on disk is damaged; going on without it")
        residual = None
    try:
        encoded = encode_update(result.weights - start, layout, task.encoding, residual=residual)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    offer = Offer(
        device=device,
        blob=BlobRef(sha256=hashlib.sha256(encoded.data).hexdigest(), size=len(encoded.data)),
        run=task.run,
        round=task.round,
        base_sha256=task.base.sha256,
        layout=task.layout,
        encoding=task.encoding,
        samples=result.samples,
        steps=result.steps,
        loss_first=result.loss_first_epoch,
        loss_last=result.loss_last_epoch,
        wall_s=result.wall_s,
        cpu_s=result.cpu_s,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    return TrainedRound(task, encoded.data, offer, encoded.residual)
