"""Judging one model on one set of images: every attack, every image, one mask for each attack."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.fast_pooling import use_fast_pooling
from models.networks import Network
from server_toolkit.errors import ConfigError
from server_toolkit.robust.attacks.model import Model, predict
from server_toolkit.robust.evaluation.accuracy import Labels, Mask
from server_toolkit.robust.evaluation.cost import GRADIENT, attack_passes, autoattack_passes
from server_toolkit.robust.evaluation.crafting import AttackSettings, PartProgress, craft
from server_toolkit.robust.evaluation.judgement import (
    CLEAN,
    Example,
    Fooling,
    Judgement,
    Norm,
    Outcome,
)
from server_toolkit.robust.evaluation.plan import Planned, parse_attacks, plan
from server_toolkit.robust.native_engine import attack_programs
from server_toolkit.robust.native_network import NativeNetwork

Images = npt.NDArray[np.float32]
Progress = Callable[[int, int, str], None]
"""Called with the passes through the model done, their total, and a short text.

Images that fall early are counted as if they had cost as much as those that stand.
"""
Kept = dict[str, npt.NDArray[np.generic]]

EXAMPLES_PER_CLASS = 2  # of every batch, kept to look at
_BROKEN_BY = "broken_by/"  # the name of a kept mask, before that of a part of AutoAttack
_OUTSIDE = 1e-5  # how far rounding may carry an image out of the ball


class Keeper(Protocol):
    """Keeps finished batches, so that an interrupted evaluation carries on."""

    def load(self, key: str) -> Kept | None:
        """Return what was kept under this key, or None."""

    def store(self, key: str, values: Kept) -> None:
        """Keep these arrays under this key."""


def judge(
    model: Model,
    images: Images,
    labels: Labels,
    *,
    epsilon: float,
    norm: Norm = "linf",
    attacks: str | Sequence[str] = "quick",
    seed: int = 0,
    surrogate: Model | None = None,
    steps: int = 20,
    square_queries: int = 5000,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    keeper: Keeper | None = None,
    progress: Progress | None = None,
) -> Judgement:
    """Return which images `model` gets right, clean and under every attack of size `epsilon`.

    `model` gives logits `(N, classes)` for images `(N, C, H, W) float32 in [0, 1]`; of an
    `nn.Module` a copy is judged, on `device` and in evaluation mode. `attacks` is "quick",
    "standard", a list with commas, or a sequence of names. Only images with the right clean answer
    are attacked, and an image stays right under an attack if the answer to the attacked one is
    right too.

    A model whose outputs carry no gradient is attacked with images made on `surrogate`, where there
    is one, and with Square. Beside a model that has gradients, `surrogate` adds images by transfer.
    `steps` are PGD's. Batches are attacked with seeds of their own, which follow from `seed`, the
    attack and the place, so a result is repeatable for one `batch_size`. Raises `ConfigError` for
    images, labels or attacks that do not fit.
    """
    names = parse_attacks(attacks if isinstance(attacks, str) else ",".join(attacks), norm)
    settings = AttackSettings(
        norm=norm, epsilon=epsilon, steps=steps, square_queries=square_queries
    )
    model = ready(model, device)
    check_images(images, labels)
    white_box = has_gradient(model, torch.from_numpy(images[:1]).to(device))
    return run_planned(
        plan(names, norm, white_box=white_box, surrogate=surrogate is not None),
        model, images, labels, settings=settings, surrogate=surrogate, seed=seed,
        batch_size=batch_size, device=device, keeper=keeper, progress=progress,
    )  # fmt: skip


def run_planned(
    planned: Sequence[Planned],
    model: Model,
    images: Images,
    labels: Labels,
    *,
    settings: AttackSettings,
    seed: int = 0,
    surrogate: Model | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    keeper: Keeper | None = None,
    progress: Progress | None = None,
    collect: bool = False,
) -> Judgement:
    """Run exactly these attacks; arguments and errors are those of `judge`.

    With `collect` the judgement has an image that fooled the model wherever one was found.
    """
    check_images(images, labels)
    if not settings.epsilon > 0:
        raise ConfigError(f"epsilon is {settings.epsilon}; it must be above 0")
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    model = _fastest(ready(model, device), planned, settings, len(images), device)
    if surrogate is not None:
        surrogate = _fastest(ready(surrogate, device), planned, settings, len(images), device)
    logits = answers(model, images, batch_size, device)
    classes = logits.shape[1]
    if labels.max() >= classes:
        raise ConfigError(f"label {labels.max()} is no class of a model with {classes} outputs")
    right = logits.argmax(1).numpy() == labels
    indices = np.flatnonzero(right)
    outcomes = [Outcome(attack=CLEAN, source="none", correct=right)]
    costs = [attack_passes(entry.attack, settings, classes=classes) for entry in planned]
    total, done = len(indices) * sum(costs), 0
    stands, fooling = right.copy(), []
    for entry, cost in zip(planned, costs, strict=True):
        crafting = surrogate if entry.source == "transfer" and surrogate is not None else model
        parts: list[tuple[npt.NDArray[np.intp], Kept]] = []
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            key = f"{entry} {settings} seed={seed} batch_size={batch_size} start={start}"
            if collect:  # what an attack is the first to turn depends on those before it
                key += f" collected behind {len(outcomes)} of {planned}"
            kept = None if keeper is None else keeper.load(key)
            if kept is None:
                kept = _attack(
                    entry.attack, crafting, model, x[chosen].to(device), y[chosen].to(device),
                    settings, seed=_batch_seed(seed, entry, start),
                    progress=_parts(
                        progress, done, total, len(chosen), entry, settings, classes=classes
                    ),
                    collected=stands[chosen] if collect else None,
                )  # fmt: skip
                if keeper is not None:
                    keeper.store(key, kept)
            parts.append((chosen, kept))
            if collect:
                fooled = chosen[kept["fooled"]]
                stands[fooled] = False
                fooling.append((fooled, kept["fooling"].astype(np.float32)))
            done += len(chosen) * cost
            if progress is not None:
                progress(done, total, f"{entry.attack} at ε = {settings.epsilon:g}")
        outcomes.append(_outcome(entry, settings, right, parts))
    return Judgement(
        norm=settings.norm,
        epsilon=settings.epsilon,
        seed=seed,
        labels=labels,
        classes=classes,
        outcomes=tuple(outcomes),
        fooling=_joined(fooling, images) if collect else None,
    )


def check_images(images: Images, labels: Labels) -> None:
    """Raise `ConfigError` unless these are `(N, C, H, W) float32 in [0, 1]` and `(N,) int64`."""
    if images.ndim != 4 or len(images) == 0 or labels.shape != images.shape[:1]:
        raise ConfigError(
            f"images {images.shape} and labels {labels.shape} do not fit; "
            "need (N, C, H, W) and (N,) with N of at least 1"
        )
    if images.dtype != np.float32 or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"images are {images.dtype} and labels {labels.dtype}; need float32 and integers"
        )
    if labels.min() < 0:
        raise ConfigError(f"labels must count classes from 0; there is {labels.min()}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ConfigError(
            f"images must be finite and in [0, 1], these reach from {images.min():g} to "
            f"{images.max():g}; scale 0-255 pixels by 1/255 and normalise inside the model"
        )


def ready(model: Model, device: str | torch.device) -> Model:
    """Return a copy of a module, on `device`, in evaluation mode; any other callable as it is."""
    if not isinstance(model, nn.Module):
        return model
    copy = deepcopy(model).to(device).eval()
    if torch.device(device).type == "cpu":
        use_fast_pooling(copy)  # the same to the bit
    return copy


def _fastest(
    model: Model,
    planned: Sequence[Planned],
    settings: AttackSettings,
    count: int,
    device: str | torch.device,
) -> Model:
    """Return one of our networks on the devices' runtime where that pays; all else as it is."""
    if not isinstance(model, Network) or next(model.parameters()).dtype != torch.float32:
        return model
    passes = sum(attack_passes(p.attack, settings, classes=model.spec.classes) for p in planned)
    programs = attack_programs(model.spec, count * passes // GRADIENT, device)
    if programs is None:
        return model
    return NativeNetwork(model.requires_grad_(False), programs)


def has_gradient(model: Model, images: Tensor) -> bool:
    """Say whether the model's outputs depend on the images in a way that autograd can follow."""
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
    if not logits.requires_grad:  # of the images or, at least, of the parameters
        return False
    (gradient,) = torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    return gradient is not None


def answers(model: Model, images: Images, batch_size: int, device: str | torch.device) -> Tensor:
    """Return the model's logits `(N, classes)` for all images, on the CPU."""
    return predict(
        lambda part: model(part.to(device)).cpu(), torch.from_numpy(images), batch_size=batch_size
    )


def _batch_seed(seed: int, entry: Planned, start: int) -> int:
    digest = hashlib.sha256(f"{seed} {entry.attack} {start}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def _parts(
    progress: Progress | None,
    done: int,
    total: int,
    count: int,
    entry: Planned,
    settings: AttackSettings,
    *,
    classes: int,
) -> PartProgress | None:
    """Tell of the parts of AutoAttack, which can take long, for a batch of `count` images."""
    if progress is None:
        return None
    costs = autoattack_passes(settings, classes=classes)
    whole = attack_passes(entry.attack, settings, classes=classes)
    behind = dict(zip(costs, accumulate(costs.values()), strict=True))

    def told(part: str, left: int) -> None:
        spent = left * behind[part] + (count - left) * whole
        text = f"{entry.attack} at ε = {settings.epsilon:g}: {left} stand after {part}"
        progress(done + spent, total, text)

    return told


def _attack(
    attack: str,
    crafting: Model,
    judged: Model,
    images: Tensor,
    labels: Tensor,
    settings: AttackSettings,
    *,
    seed: int,
    progress: PartProgress | None,
    collected: Mask | None,
) -> Kept:
    """Attack one batch of rightly answered images; return what is worth keeping of it as arrays.

    `collected` `(N,) bool` asks for an image that fools wherever none is known yet.
    """
    crafted = craft(attack, crafting, images, labels, settings, seed=seed, progress=progress)
    adversarial = crafted.images.detach()
    change = (adversarial - images).flatten(1)
    size = change.abs().amax(1) if settings.norm == "linf" else change.norm(dim=1)
    inside = size <= settings.epsilon + _OUTSIDE
    if attack != "cw_l2" and not bool(inside.all()):
        raise RuntimeError(f"{attack} left the ball: {float(size.max())} > {settings.epsilon}")
    with torch.no_grad():
        answered = judged(adversarial).argmax(1)
    turned = answered != labels
    if crafted.robust is not None and crafting is judged:
        turned = ~crafted.robust  # at the boundary another batch size may round otherwise
    kept: Kept = {"correct": (~(turned & inside)).cpu().numpy()}
    for part, mask in crafted.broken_by.items():
        kept[_BROKEN_BY + part] = mask.cpu().numpy()
    if attack == "cw_l2":
        distance = torch.where(turned, change.norm(dim=1), torch.inf)
        kept["distances"] = distance.cpu().numpy().astype(np.float32)
    broken = (turned & inside).cpu().numpy()
    if collected is not None:
        fooled = np.flatnonzero(broken & collected)
        kept["fooled"], kept["fooling"] = fooled, adversarial[fooled].cpu().numpy()
    picked = _pick(broken, labels.cpu().numpy())
    kept["picked"] = picked
    kept["picked_images"] = adversarial[picked].cpu().numpy()
    kept["picked_answers"] = answered[picked].cpu().numpy()
    return kept


def _joined(parts: Sequence[tuple[npt.NDArray[np.intp], Images]], images: Images) -> Fooling:
    """Join the batches of all attacks; there may be none."""
    indices = [np.zeros(0, np.intp), *(chosen for chosen, _ in parts)]
    return Fooling(np.concatenate(indices), np.concatenate([images[:0], *(x for _, x in parts)]))


def _pick(broken: Mask, labels: Labels) -> npt.NDArray[np.int64]:
    """Return the places of the first broken images of each class."""
    places = [np.flatnonzero(broken & (labels == c))[:EXAMPLES_PER_CLASS] for c in set(labels)]
    return np.sort(np.concatenate(places)).astype(np.int64)


def _outcome(
    entry: Planned,
    settings: AttackSettings,
    right: Mask,
    parts: Sequence[tuple[npt.NDArray[np.intp], Kept]],
) -> Outcome:
    """Join the batches of one attack."""
    correct = right.copy()
    distances = np.zeros(len(right), np.float32) if entry.attack == "cw_l2" else None
    broken_by: dict[str, Mask] = {}
    examples: list[Example] = []
    for chosen, kept in parts:
        correct[chosen] = kept["correct"]
        if distances is not None:
            distances[chosen] = kept["distances"]
        for key in (key for key in kept if key.startswith(_BROKEN_BY)):
            mask = broken_by.setdefault(key.removeprefix(_BROKEN_BY), np.zeros_like(right))
            mask[chosen] = kept[key]
        examples += [
            Example(int(chosen[place]), image, int(answer))
            for place, image, answer in zip(
                kept["picked"], kept["picked_images"], kept["picked_answers"], strict=True
            )
        ]
    return Outcome(
        attack=entry.attack,
        source=entry.source,
        correct=correct,
        settings=settings.describe(entry.attack),
        broken_by=broken_by,
        distances=distances,
        examples=tuple(examples),
    )
