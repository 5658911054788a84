"""What a chain of layers computes in float64, and how far a program may be from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Layers = Sequence[tuple[str, nn.Module]]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Score = Callable[[Tensor], Tensor]

IMAGES = "images"  # the name of their gradient among the parameters'
# Below this part of the whole gradient's norm, a true gradient counts as zero.
NEGLIGIBLE = 1e-9
# float32 cannot tell on which side of zero an activation this small lies, nor which of two numbers
# this close is larger; where activations are larger than 1 this is a fraction of their size.
KINK = 4e-6
RANDOM_SCORES = 3
# How the choices fall in the program is not known, only how much they matter; and what float32
# loses depends on the order of every sum: torch's may be lucky.
KINK_SLACK, FLOAT32_SLACK = 2.0, 10.0
# A gradient that cancels is a sum of terms as large as others' gradients, each rounded by 6e-8.
ROUNDING = 1e-7  # of the norm of all gradients


@dataclass(frozen=True)
class Result:
    """Summed loss, logits `(B, classes)` and gradients by parameter, `IMAGES` among them."""

    loss: float
    logits: Float64
    gradients: dict[str, Float64]


def copied(layers: Layers, dtype: torch.dtype) -> list[tuple[str, nn.Module]]:
    """Return copies of the layers in another precision."""
    return [(name, copy.deepcopy(layer).to(dtype)) for name, layer in layers]


def parameters_of(layers: Layers) -> dict[str, nn.Parameter]:
    """Return the parameters by their full names, in order."""
    return {f"{name}.{n}": p for name, layer in layers for n, p in layer.named_parameters()}


def run(layers: Layers, images: Float32, labels: Float32) -> Result:
    """Run images `(B, C, H, W)` with label rows `(B, classes)` through both directions.

    In the precision of the layers.
    """
    parameters = parameters_of(layers)
    dtype = next(iter(parameters.values())).dtype
    pixels = torch.from_numpy(images).to(dtype).requires_grad_()
    logits = pixels.clone()  # a layer may write to its input
    for _, layer in layers:
        logits = layer(logits)
    loss = -(torch.from_numpy(labels).to(dtype) * logits.log_softmax(dim=1)).sum()
    leaves = {**parameters, IMAGES: pixels}
    found = torch.autograd.grad(loss, list(leaves.values()))
    gradients = {n: g.double().numpy() for n, g in zip(leaves, found, strict=True)}
    return Result(loss.item(), logits.detach().double().numpy(), gradients)


def gradient_errors(
    found: Mapping[str, Float32],
    layers: Layers,
    images: Float32,
    labels: Float32,
    *,
    truth: Result,
    tolerance: float,
) -> dict[str, float]:
    """Return how far each gradient is from `truth`, which `run` gave for these float64 layers.

    An error is the norm of the difference over the norm of the true gradient; where that is
    negligible, over the norm of all gradients in `found`. Where one is over the tolerance, what
    float32 cannot decide is taken off: on which side of a kink an activation lies, which of two
    equal numbers a max pool takes, what torch's own float32 gradient is off, and `ROUNDING`.
    """
    true = {name: truth.gradients[name] for name in found}
    whole = float(np.sqrt(sum(np.sum(g**2) for g in true.values())))
    scales = {name: norm(g) if norm(g) > NEGLIGIBLE * whole else whole for name, g in true.items()}
    errors = {
        name: norm(found[name].astype(np.float64) - g) / (scales[name] or 1.0)
        for name, g in true.items()
    }
    if all(error <= tolerance for error in errors.values()):
        return errors
    undecided = _undecided(layers, images, labels, truth)
    return {
        name: error
        if error <= tolerance
        else max(error - (undecided[name] + ROUNDING * whole) / (scales[name] or 1.0), 0.0)
        for name, error in errors.items()
    }


def norm(values: npt.NDArray[np.floating]) -> float:
    """Return the Euclidean norm of all entries."""
    return float(np.linalg.norm(values.astype(np.float64).ravel()))


def _undecided(layers: Layers, images: Float32, labels: Float32, truth: Result) -> dict[str, float]:
    """Return the norm of what float32 leaves open in each gradient."""
    plain = run(copied(layers, torch.float32), images, labels).gradients
    low, high = (at_kinks(layers, images, labels, score) for score in (lowest, highest))
    generator = torch.Generator().manual_seed(0)

    def random(x: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=generator, dtype=x.dtype)

    drawn = [at_kinks(layers, images, labels, random) for _ in range(RANDOM_SCORES)]
    return {
        name: FLOAT32_SLACK * norm(plain[name] - g)
        + KINK_SLACK
        * max(norm(high[name] - low[name]), *(norm(moved[name] - g) for moved in drawn))
        for name, g in truth.gradients.items()
    }


def at_kinks(layers: Layers, images: Float32, labels: Float32, score: Score) -> dict[str, Float64]:
    """Return the gradients where `score` decides what float32 cannot.

    It gives numbers in [0, 1] of a tensor's shape. An activation near zero passes ReLU if its
    score is above a half; of those that are nearly a max pool's largest, the one with the highest
    score takes the gradient, the first of equals.
    """

    def moved(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.ReLU):
            return _ReLU(score)
        return _MaxPool(layer.kernel_size, score) if isinstance(layer, nn.MaxPool2d) else layer

    return run([(name, moved(layer)) for name, layer in layers], images, labels).gradients


def lowest(x: Tensor) -> Tensor:
    """Score so that nothing passes, and the first is taken."""
    return torch.zeros_like(x)


def highest(x: Tensor) -> Tensor:
    """Score so that all passes, and the last is taken."""
    return torch.linspace(0.6, 1, x.shape[-1], dtype=x.dtype).expand(x.shape)


def _margin(x: Tensor) -> float:
    return KINK * max(1.0, float(x.detach().square().mean().sqrt()))


class _ReLU(nn.Module):
    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor) -> Tensor:
        near = x.abs() < _margin(x)
        return x * torch.where(near, self.score(x) > 0.5, x > 0)


class _MaxPool(nn.Module):
    """Squares that do not overlap."""

    def __init__(self, size: int | tuple[int, ...], score: Score) -> None:
        super().__init__()
        self.size = size if isinstance(size, int) else size[0]
        self.score = score

    def forward(self, x: Tensor) -> Tensor:
        size = self.size
        height, width = x.shape[2] // size, x.shape[3] // size
        kept = x[:, :, : height * size, : width * size]
        windows = kept.reshape(*x.shape[:2], height, size, width, size).transpose(3, 4).flatten(4)
        near = windows >= windows.amax(-1, keepdim=True) - _margin(x)
        taken = torch.where(near, self.score(windows), -1.0).argmax(-1, keepdim=True)
        largest: Tensor = windows.gather(-1, taken).squeeze(-1)
        return largest
