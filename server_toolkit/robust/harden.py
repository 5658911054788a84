"""Adversarial training of the federated model on a proxy set: the training loop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge_sdk.training import Dataset
from models import ModelSpec, layout_of
from models.fast_pooling import use_fast_pooling
from models.layout import Flat
from models.networks import build_model, flat_parameters, load_flat
from server_toolkit.errors import ConfigError, HardeningError
from server_toolkit.robust.harden_averaging import WeightAverage
from server_toolkit.robust.harden_batches import Batches
from server_toolkit.robust.harden_config import HardenConfig, LabelSource
from server_toolkit.robust.harden_labels import Labels, Teachers, as_probabilities
from server_toolkit.robust.harden_loop import train
from server_toolkit.robust.harden_selection import ATTACK_STEPS, Selection, split
from server_toolkit.robust.harden_state import HardenProgress, TrainingState
from server_toolkit.robust.native_engine import hardening_programs
from server_toolkit.robust.native_network import NativeNetwork, Programs
from server_toolkit.robust.objectives import make_objective
from server_toolkit.robust.objectives.inner import Ascent, cached_images

__all__ = ["HardenConfig", "HardenProgress", "HardenResult", "LabelSource", "harden"]

CHECKPOINT_EVERY = 25  # steps


@dataclass(frozen=True)
class HardenResult:
    """The hardened weights `(size,) float32` and one entry for every step taken.

    `best_step` is the step whose weights they are where a part was held out, else `None`.
    """

    weights: Flat
    history: tuple[HardenProgress, ...]
    best_step: int | None = None


def harden(
    spec: ModelSpec,
    start: Flat,
    images: npt.NDArray[np.float32],
    labels: Labels,
    *,
    config: HardenConfig,
    teacher: Flat | Sequence[Flat] | None = None,
    real: Dataset | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[HardenProgress], None] | None = None,
    device: str | torch.device = "cpu",
) -> HardenResult:
    """Train `start` on attacked images by `config.objective`, with the labels that it asks for.

    `images` `(N, C, H, W) float32 in [0, 1]`; `labels` `(N,) int64` classes or `(N, classes)
    float32` probabilities, unused with teacher labels. `real` images are mixed in (`real_share`);
    nothing of them is held out. `teacher` is a flat weight vector, or several for an ensemble;
    `start` unless given. With `checkpoint`, a killed run resumes from that file and ends with
    bit-identical weights on the same machine. Raises `ConfigError` for images or labels that do not
    fit or a checkpoint of another run, and `HardeningError` where training diverges.
    """
    given = _probabilities(spec, images, labels, config)
    guides = _teacher_weights(start, teacher, config.label_source)
    decisive = [start, images, given.numpy(), *guides]
    own = None
    if real is not None:
        own_labels = _probabilities(spec, real.images, real.labels, config)
        decisive += [real.images, own_labels.numpy()]
        own = (torch.from_numpy(real.images).to(device), own_labels.to(device))
    programs = hardening_programs(spec, config, device)
    fingerprint = _fingerprint(config, spec, programs, *decisive)

    # A GPU takes a batch whole, and programs divide it themselves; torch on a CPU is faster with
    # what the cache holds.
    in_parts = programs is None and torch.device(device).type == "cpu"
    chunk = cached_images(spec) if in_parts else None
    pixels, given = torch.from_numpy(images).to(device), given.to(device)
    teachers = None
    if config.label_source in ("teacher", "ensemble"):
        networks = [_network(spec, guide, device, programs) for guide in guides]
        teachers = Teachers(networks, config.teacher_temperature)
    trained_on, held_out = split(len(images), config)
    batches = Batches(pixels[trained_on], given[trained_on], own, config)
    selection = None
    if len(held_out):
        x = pixels[held_out]
        q = given[held_out] if teachers is None else teachers(x)
        selection = Selection(x, q, config, Ascent(ATTACK_STEPS, chunk=chunk))

    first = start
    if config.start == "scratch":
        first = flat_parameters(build_model(spec, seed=config.seed))
    network = _network(spec, first, device, programs)
    state = TrainingState(
        network=network,
        velocity=[torch.zeros_like(p) for p in network.parameters()],
        objective=make_objective(config, chunk=chunk),
        average=WeightAverage(config),
        selection=selection,
        history=[],
    )
    if checkpoint and checkpoint.exists():
        state.load(checkpoint, fingerprint)

    def after_step() -> None:
        done = len(state.history)
        if checkpoint and (done % CHECKPOINT_EVERY == 0 or done == config.steps):
            state.save(checkpoint, fingerprint)
        if progress:
            progress(state.history[-1])

    train(state, batches, teachers, config, after_step=after_step)
    weights = np.concatenate([tensor.detach().cpu().numpy().ravel() for tensor in state.result])
    if not np.isfinite(weights).all():
        raise HardeningError("hardening diverged in its last step; use a smaller learning_rate")
    return HardenResult(
        weights, tuple(state.history), None if selection is None else selection.best_step
    )


def _teacher_weights(start: Flat, teacher: Flat | Sequence[Flat] | None, source: str) -> list[Flat]:
    """Return every teacher's weights; raise `ConfigError` for more than the labels ask for."""
    if teacher is None:
        return [start]
    weights = [teacher] if isinstance(teacher, np.ndarray) else list(teacher)
    if not weights or (len(weights) > 1 and source != "ensemble"):
        raise ConfigError(
            f"{len(weights)} teachers for label_source {source!r}; "
            "an 'ensemble' takes one or more, every other source one"
        )
    return weights


def _probabilities(
    spec: ModelSpec, images: npt.NDArray[np.float32], labels: Labels, config: HardenConfig
) -> Tensor:
    """Return the labels as `(N, classes)` probabilities; raise `ConfigError` for what is unfit."""
    side = spec.image_size
    if images.dtype != np.float32 or images.shape[1:] != (spec.channels, side, side):
        raise ConfigError(
            f"images are {images.shape} {images.dtype}; "
            f"expected (N, {spec.channels}, {side}, {side}) float32"
        )
    if len(images) == 0 or not (images.min() >= 0 and images.max() <= 1):
        raise ConfigError("images must be at least one, finite and in [0, 1]")
    return as_probabilities(labels, len(images), spec, config.label_source)


def _network(
    spec: ModelSpec, flat: Flat, device: str | torch.device, programs: Programs | None
) -> nn.Module:
    if flat.shape != (layout_of(spec).size,):
        raise ConfigError(
            f"{flat.size} weights for a network of {layout_of(spec).size}; "
            "the model description belongs to another network"
        )
    network = build_model(spec, seed=0)
    load_flat(network, flat)
    network = network.to(device)
    if torch.device(device).type == "cpu":
        use_fast_pooling(network)
    return network if programs is None else NativeNetwork(network, programs)


def _fingerprint(
    config: HardenConfig,
    spec: ModelSpec,
    programs: Programs | None,
    *parts: npt.NDArray[np.float32],
) -> str:
    """Return a hash of everything that decides the result."""
    settings: list[Any] = [config.to_dict(), spec.to_dict()]
    if programs is not None:
        settings.append({"native_micro_batch": programs.micro_batch})
    digest = hashlib.sha256(json.dumps(settings).encode())
    for part in parts:
        digest.update(f"{part.shape}".encode() + part.tobytes())
    return digest.hexdigest()
