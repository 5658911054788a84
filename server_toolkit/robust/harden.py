"""Adversarial training of the federated model on a proxy set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, one_hot

from models import ModelSpec, layout_of
from models.layout import Flat
from models.networks import Network, build_model, flat_parameters, load_flat
from server_toolkit.distill.tensor_file import read_tensor_file, write_tensor_file
from server_toolkit.errors import ConfigError
from server_toolkit.robust.attacks import pgd
from server_toolkit.robust.augment import FILLS, flip, shift

LabelSource = Literal["hard", "learned", "teacher"]
CHECKPOINT_EVERY = 25  # steps
MAX_CHECKPOINT_BYTES = 2**34


@dataclass(frozen=True, kw_only=True)
class HardenConfig:
    """How to harden; raises `ConfigError` naming the field that is out of range.

    `label_source` is what every image should be classified as: its `hard` class, its `learned`
    soft label, or what the `teacher`, the federated model, says of the augmented clean image.
    `epsilon` and `attack_steps` are those of the PGD inside training, l∞ on pixels in [0, 1], its
    step size `epsilon / 4`. `clean_weight` weighs the loss on clean images against that on
    adversarial ones. With probability `mix_probability` a batch is blended with other images of
    the set, which a teacher can label. The learning rate falls to zero over the second half.
    """

    label_source: LabelSource = "teacher"
    epsilon: float = 0.1
    attack_steps: int = 7
    steps: int = 300
    batch_size: int = 50
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clean_weight: float = 1.0
    shift_pixels: int = 1
    shift_fill: str = "zero"
    flips: bool = False
    mix_probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.label_source not in get_args(LabelSource):
            allowed = ", ".join(get_args(LabelSource))
            raise ConfigError(f"label_source is {self.label_source!r}; choose one of {allowed}")
        if self.shift_fill not in FILLS:
            raise ConfigError(
                f"shift_fill is {self.shift_fill!r}; choose one of {', '.join(FILLS)}"
            )
        for name, low, high in (
            ("epsilon", 0, 1),
            ("attack_steps", 1, 1000),
            ("steps", 1, 10**7),
            ("batch_size", 1, 10**5),
            ("learning_rate", 0, 100),
            ("momentum", 0, 1),
            ("weight_decay", 0, 1),
            ("clean_weight", 0, 1000),
            ("shift_pixels", 0, 64),
            ("mix_probability", 0, 1),
            ("seed", 0, 2**62),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {low} to {high}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class HardenProgress:
    """One step done; the losses are means over its batch."""

    step: int
    steps: int
    adversarial_loss: float
    clean_loss: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class HardenResult:
    """The hardened weights `(size,) float32` and one entry for every step."""

    weights: Flat
    history: tuple[HardenProgress, ...]


def harden(
    spec: ModelSpec,
    start: Flat,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    *,
    config: HardenConfig,
    teacher: Flat | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[HardenProgress], None] | None = None,
    device: str | torch.device = "cpu",
) -> HardenResult:
    """Train `start` on PGD examples of `images` (Madry et al. 2018), teacher labels included.

    `images` `(N, C, H, W) float32 in [0, 1]`; `labels` `(N,) int64` classes or `(N, classes)
    float32` probabilities, unused with teacher labels. The loss of a step is
    KL(q | f(x')) + clean_weight · KL(q | f(x)) with q the labels. `teacher` is a flat weight
    vector, `start` unless given. With `checkpoint`, a killed run resumes from that file and ends
    with bit-identical weights on the same machine. Raises `ConfigError` for images or labels that
    do not fit, or a checkpoint of another run.
    """
    probabilities = _check(spec, images, labels, config).to(device)
    model = _network(spec, start, device)
    guide = _network(spec, start if teacher is None else teacher, device)
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    history: list[HardenProgress] = []
    fingerprint = _fingerprint(
        config, spec, start, images, probabilities.cpu().numpy(), flat_parameters(guide)
    )
    if checkpoint and checkpoint.exists():
        _load_checkpoint(checkpoint, fingerprint, model, velocity, history)

    pixels = torch.from_numpy(images).to(device)
    while len(history) < config.steps:
        step = len(history)
        # Seeding by step leaves no generator state to keep in a checkpoint.
        generator = torch.Generator().manual_seed(_step_seed(config.seed, step))
        x, q = _batch(pixels, probabilities, config, generator)
        if config.label_source == "teacher":
            with torch.no_grad():
                q = guide(x).softmax(dim=1)
        adversarial = pgd(
            model, x, q, epsilon=config.epsilon, steps=config.attack_steps, generator=generator
        )
        log_p = log_softmax(model(torch.cat([adversarial, x])), dim=1)
        adversarial_loss = kl_div(log_p[: len(x)], q, reduction="batchmean")
        clean_loss = kl_div(log_p[len(x) :], q, reduction="batchmean")
        decay = min(1.0, 2 * (1 - step / config.steps))
        loss = adversarial_loss + config.clean_weight * clean_loss
        _sgd(model, velocity, loss, config.learning_rate * decay, config)

        history.append(
            HardenProgress(step + 1, config.steps, adversarial_loss.item(), clean_loss.item())
        )
        done = step + 1
        if checkpoint and (done % CHECKPOINT_EVERY == 0 or done == config.steps):
            _save_checkpoint(checkpoint, fingerprint, model, velocity, history)
        if progress:
            progress(history[-1])
    return HardenResult(flat_parameters(model), tuple(history))


def _check(
    spec: ModelSpec,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    config: HardenConfig,
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
    if labels.shape == (len(images),) and labels.dtype == np.int64:
        if labels.min() < 0 or labels.max() >= spec.classes:
            raise ConfigError(f"labels must be from 0 to {spec.classes - 1}")
        return one_hot(torch.from_numpy(labels), spec.classes).float()
    if labels.shape != (len(images), spec.classes) or config.label_source == "hard":
        raise ConfigError(
            f"labels are {labels.shape} {labels.dtype}; label_source "
            f"{config.label_source!r} needs ({len(images)},) int64"
            + ("" if config.label_source == "hard" else f" or ({len(images)}, {spec.classes})")
        )
    return torch.from_numpy(labels).float()


def _network(spec: ModelSpec, flat: Flat, device: str | torch.device) -> Network:
    if flat.shape != (layout_of(spec).size,):
        raise ConfigError(
            f"{flat.size} weights for a network of {layout_of(spec).size}; "
            "the model description belongs to another network"
        )
    network = build_model(spec, seed=0)
    load_flat(network, flat)
    return network.to(device)


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def _batch(
    images: Tensor, labels: Tensor, config: HardenConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return one augmented batch and its labels, drawn without replacement where it can be."""
    repeats = -(-config.batch_size // len(images))
    draws = [torch.randperm(len(images), generator=generator) for _ in range(repeats)]
    chosen = torch.cat(draws)[: config.batch_size].to(images.device)
    x, q = images[chosen], labels[chosen]
    if torch.rand((), generator=generator) < config.mix_probability:
        other = torch.randint(len(images), (len(x),), generator=generator).to(images.device)
        share = torch.rand(len(x), generator=generator).to(images.device)
        x = torch.lerp(images[other], x, share[:, None, None, None])
        q = torch.lerp(labels[other], q, share[:, None])
    if config.shift_pixels:
        x = shift(x, max_pixels=config.shift_pixels, generator=generator, fill=config.shift_fill)
    if config.flips:
        x = flip(x, generator=generator)
    return x, q


def _sgd(
    model: nn.Module,
    velocity: Mapping[str, Tensor],
    loss: Tensor,
    learning_rate: float,
    config: HardenConfig,
) -> None:
    """Take one step of SGD with momentum and weight decay, in place."""
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    with torch.no_grad():
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            decayed = gradient + config.weight_decay * parameter
            velocity[name].mul_(config.momentum).add_(decayed)
            parameter.sub_(velocity[name], alpha=learning_rate)


def _fingerprint(config: HardenConfig, spec: ModelSpec, *arrays: npt.NDArray[np.float32]) -> str:
    """Return a hash of everything that decides the result."""
    digest = hashlib.sha256(json.dumps([config.to_dict(), spec.to_dict()]).encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def _save_checkpoint(
    path: Path,
    fingerprint: str,
    model: nn.Module,
    velocity: Mapping[str, Tensor],
    history: list[HardenProgress],
) -> None:
    tensors = {f"velocity.{name}": v.cpu().numpy() for name, v in velocity.items()}
    tensors["weights"] = flat_parameters(model)
    entries = [entry.to_dict() for entry in history]
    write_tensor_file(path, tensors, {"fingerprint": fingerprint, "history": entries})


def _load_checkpoint(
    path: Path,
    fingerprint: str,
    model: Network,
    velocity: dict[str, Tensor],
    history: list[HardenProgress],
) -> None:
    tensors, fields = read_tensor_file(path, max_bytes=MAX_CHECKPOINT_BYTES)
    if fields.get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{path}: checkpoint of a run with other settings, weights or images; "
            "remove it or name another file"
        )
    try:
        load_flat(model, tensors["weights"])
        for name, held in velocity.items():
            held.copy_(torch.from_numpy(tensors[f"velocity.{name}"]))
        history += [HardenProgress(**entry) for entry in fields["history"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: damaged checkpoint: {error}; remove it") from error
