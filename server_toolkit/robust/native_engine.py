"""Whether hardening and attacks compute in torch or on the devices' own runtime."""

from __future__ import annotations

import functools
import logging
import math

import torch

from edge_sdk.commands.torch_notices import without_notices
from edge_sdk.errors import EdgeError
from models import ModelSpec
from server_toolkit.robust.harden_config import HardenConfig
from server_toolkit.robust.native_network import Programs
from server_toolkit.robust.objectives.inner import cached_images

log = logging.getLogger(__name__)

# Numbers in the outputs of a run's layers over all its gradients. Measured, the runtime saves about
# a second for each billion of them. Exporting costs a ConvNet two to four, once in a process, and
# most processes that harden briefly do it more than once.
WORTH_AN_EXPORT = 1e9
# Images at a time. More than the larger gains nothing, and the export checks every one; with fewer
# than the smaller, large weights are read too often, whatever the cache holds.
MAX_MICRO_BATCH, ENOUGH_FOR_WEIGHTS = 25, 10
# Of an attack, whose batches grow smaller as images fall, so that a larger one is mostly padding.
ATTACK_MICRO_BATCH = 10


def hardening_programs(
    spec: ModelSpec, config: HardenConfig, device: str | torch.device
) -> Programs | None:
    """Return the programs to harden with, or None where torch is to do it.

    That is on a GPU, in a run too short to be worth an export, for "free", and, with a line in the
    log, where there is no program for the network, no executorch or no runtime. Nothing else
    decides, so that a run that is resumed ends as if it had never stopped.
    """
    if config.objective == "free":  # its one pass for both gradients would take two programs
        return None
    attack_steps = 1 if config.objective == "fast" else config.attack_steps
    gradients = config.steps * config.batch_size * (attack_steps + 2)
    if not _worth_it(spec, gradients, device):
        return None
    return _export(spec, micro_batch(spec, config.batch_size), True)


def attack_programs(spec: ModelSpec, gradients: int, device: str | torch.device) -> Programs | None:
    """Return the programs to attack with, or None where torch is to do it.

    `gradients` are those, by single images, of a whole evaluation in which no image falls. Decides
    as `hardening_programs` does.
    """
    if not _worth_it(spec, gradients, device):
        return None
    return _export(spec, ATTACK_MICRO_BATCH, False)


def micro_batch(spec: ModelSpec, batch_size: int) -> int:
    """Return how many images hardening gives the programs, with little padding behind a batch."""
    most = min(batch_size, MAX_MICRO_BATCH, max(ENOUGH_FOR_WEIGHTS, cached_images(spec)))
    return min(range(most, most // 2, -1), key=lambda size: -batch_size % size)


def _worth_it(spec: ModelSpec, gradients: int, device: str | torch.device) -> bool:
    an_image = sum(math.prod(behind) for *_, behind in spec.shapes())
    return torch.device(device).type == "cpu" and gradients * an_image >= WORTH_AN_EXPORT


@functools.lru_cache(maxsize=4)  # a process may harden the same network a hundred times
def _export(spec: ModelSpec, size: int, training: bool) -> Programs | None:
    try:
        with without_notices("the devices' runtime"):
            from edge_sdk.export import attack_program, evaluation_program, training_program

            return Programs(
                attack_program(spec, micro_batch=size),
                evaluation_program(spec, batch=size),
                training_program(spec, micro_batch=size) if training else None,
            )
    except EdgeError as error:
        log.info("computing in torch, which takes twice as long: %s", error)
        return None
