"""Small measurements beside an evaluation that show where its numbers may be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server_toolkit.robust.attacks.losses import cross_entropies, margins
from server_toolkit.robust.attacks.model import Loss, Model, loss_gradient, predict
from server_toolkit.robust.evaluation.accuracy import Labels, Mask
from server_toolkit.robust.evaluation.crafting import AttackSettings, craft
from server_toolkit.robust.evaluation.judge import Images, has_gradient, ready
from server_toolkit.robust.evaluation.judgement import Norm

SAMPLE = 200  # images that a probe looks at
RESTARTS = 5
LONG_STEPS = 100
LARGE_STEPS = 50
# Shares of the largest output that rounding explains. Other batches take other kernels, which may
# round to ten bits on a GPU and meet other rounding edges in an int8 file.
_REPEATED = 1e-3
_OTHER_BATCH = 2e-2


@dataclass(frozen=True, kw_only=True)
class GradientProbes:
    """Shares, in [0, 1], of the `images` probed ones that have the right clean answer.

    `zero` and `zero_margin`: the gradient of the cross-entropy, of the margin between logits, is
    exactly zero. `stood` is the share that stood against all attacks tried; `fell_to_starts` and
    `fell_to_steps` that stood, but falls to five more starts of PGD, to PGD of 100 steps (APGD in
    the l2 ball). `at_large_epsilon` stands at a size where nothing can.
    """

    images: int
    zero: float
    zero_margin: float
    stood: float
    fell_to_starts: float
    fell_to_steps: float
    large_epsilon: float
    at_large_epsilon: float


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What was seen on `images` images of the judged set; shares are in [0, 1].

    `guessing` is the share of the largest class. `gradients` is None for a model without any, or
    without a right answer.
    """

    images: int
    clean: float
    brightest: float
    guessing: float
    clean_at_other_scale: Mapping[str, float]
    changed_when_repeated: float
    changed_in_other_batch: float
    look_like_probabilities: bool
    gradients: GradientProbes | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def probe(
    model: Model,
    images: Images,
    labels: Labels,
    *,
    robust: Mask,
    epsilon: float,
    norm: Norm = "linf",
    margins_tried: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> Probes:
    """Look at `model` on at most 200 of the images, drawn by `seed`.

    `robust` `(N,) bool` is what stood at `epsilon`. With `margins_tried` the evaluation has attacks
    on the margin between logits, and so has the probe at a large epsilon. The other arguments are
    those of `judge`.
    """
    model = ready(model, device)
    chosen = np.random.default_rng(seed).permutation(len(images))[:SAMPLE]
    x, y = torch.from_numpy(images[chosen]).to(device), torch.from_numpy(labels[chosen]).to(device)

    def answer(x: Tensor, size: int = batch_size) -> Tensor:
        return predict(model, x, batch_size=size)

    logits = answer(x)
    right = logits.argmax(1) == y
    gradients = None
    if bool(right.any()) and has_gradient(model, x[:1]):
        stood = torch.from_numpy(robust[chosen]).to(device)[right]
        gradients = _probe_gradients(
            model, x[right], y[right], stood, epsilon, norm, margins_tried, seed, batch_size
        )
    return Probes(
        images=len(chosen),
        clean=_share(right),
        brightest=float(images.max()),
        guessing=float(np.bincount(labels[chosen]).max() / len(chosen)),
        clean_at_other_scale={
            name: _share(answer(scale(x)).argmax(1) == y) for name, scale in OTHER_SCALES.items()
        },
        changed_when_repeated=_changed(logits, answer(x), _REPEATED),
        changed_in_other_batch=_changed(logits[:16], answer(x[:16], 1), _OTHER_BATCH),
        look_like_probabilities=_probabilities(logits),
        gradients=gradients,
    )


def _probe_gradients(
    model: Model,
    x: Tensor,
    y: Tensor,
    stood: Tensor,
    epsilon: float,
    norm: Norm,
    margins_tried: bool,
    seed: int,
    batch_size: int,
) -> GradientProbes:
    walk = "pgd" if norm == "linf" else "apgd_ce"

    def stands(attack: str, epsilon: float, steps: int, seed: int) -> Tensor:
        settings = AttackSettings(norm=norm, epsilon=epsilon, steps=steps)
        return _stands(attack, model, x, y, settings, seed, batch_size)

    starts = [stands(walk, epsilon, 20, seed + 1 + i) for i in range(RESTARTS)]
    large = 0.5 if norm == "linf" else math.sqrt(x[0].numel()) / 2
    at_large = stands(walk, large, LARGE_STEPS, seed)
    if margins_tried:
        at_large &= stands("cw_linf" if norm == "linf" else "apgd_dlr", large, 0, seed)
    return GradientProbes(
        images=len(x),
        zero=_zero_gradients(model, x, y, cross_entropies, batch_size),
        zero_margin=_zero_gradients(model, x, y, margins, batch_size),
        stood=_share(stood),
        fell_to_starts=_share(stood & ~torch.stack(starts).all(0)),
        fell_to_steps=_share(stood & ~stands(walk, epsilon, LONG_STEPS, seed)),
        large_epsilon=large,
        at_large_epsilon=_share(at_large),
    )


def _standardised(x: Tensor) -> Tensor:
    """Subtract each channel's mean over the images and divide by its deviation."""
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return (x - mean) / std.clamp(min=1e-6)


OTHER_SCALES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "standardised by channel": _standardised,
    "scaled to [-1, 1]": lambda x: 2 * x - 1,
    "scaled to [0, 255]": lambda x: 255 * x,
}


def _share(mask: Tensor) -> float:
    return float(mask.float().mean()) if len(mask) else 0.0


def _changed(first: Tensor, second: Tensor, tolerance: float) -> float:
    """Return the share of images whose outputs differ by more than rounding."""
    size = first.abs().amax().clamp(min=1e-12)
    return _share((first - second).abs().amax(1) > tolerance * size)


def _probabilities(logits: Tensor) -> bool:
    """Say whether every row is nonnegative and adds up to one."""
    return bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())


def _parts(x: Tensor, batch_size: int) -> list[slice]:
    return [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]


def _zero_gradients(model: Model, x: Tensor, y: Tensor, loss: Loss, batch_size: int) -> float:
    """Return the share of images at which the gradient of the loss is exactly zero."""
    zero = [
        (loss_gradient(model, x[part], loss, y[part])[2].flatten(1) == 0).all(1)
        for part in _parts(x, batch_size)
    ]
    return _share(torch.cat(zero))


def _stands(
    attack: str,
    model: Model,
    x: Tensor,
    y: Tensor,
    settings: AttackSettings,
    seed: int,
    batch_size: int,
) -> Tensor:
    """Return which images stand against an attack."""
    parts = []
    for part in _parts(x, batch_size):
        adversarial = craft(attack, model, x[part], y[part], settings, seed=seed).images
        with torch.no_grad():
            parts.append(model(adversarial).argmax(1) == y[part])
    return torch.cat(parts)
