"""The inner maximisation: projected gradient ascent inside a training step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import ModelSpec
from server_toolkit.robust.native_network import image_gradient

CACHED_BYTES = 1_650_000  # of one layer's output; measured, and near a core's cache


@dataclass(frozen=True)
class Ascent:
    """`steps` signed gradient steps of `step` · ε, each followed by the projection onto the ball.

    Images are taken in equal parts of at most `chunk` (None: all at once). They do not depend on
    one another, so this changes no result; on a CPU it keeps the layers' outputs in the cache.
    """

    steps: int
    step: float = 0.25
    chunk: int | None = None

    def from_uniform(
        self,
        model: nn.Module,
        images: Tensor,
        target: Tensor,
        *,
        epsilon: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return x' from a start drawn uniformly in the ball (Madry et al. 2018).

        The same as `attacks.pgd`; `generator` is a CPU one.
        """
        noise = torch.rand(images.shape, generator=generator, dtype=images.dtype)
        start = images + epsilon * (2 * noise.to(images.device) - 1)
        return self(model, start, images, target, epsilon=epsilon)

    def __call__(
        self, model: nn.Module, start: Tensor, images: Tensor, target: Tensor, *, epsilon: float
    ) -> Tensor:
        """Return x' that maximises CE(target, f(x')) over |x' - images| ≤ ε within [0, 1].

        `start` `(N, C, H, W)` is projected first. `target` `(N, classes)` probabilities are
        constants: the cross-entropy then differs from KL(target | f(x')) by their entropy only, so
        both have this gradient.
        """
        count = 1 if self.chunk is None else -(-len(images) // self.chunk)
        size = -(-len(images) // count)
        parts = []
        for first in range(0, len(images), size):
            part = slice(first, first + size)
            parts.append(self._climb(model, start[part], images[part], target[part], epsilon))
        return torch.cat(parts)

    def _climb(
        self, model: nn.Module, start: Tensor, images: Tensor, target: Tensor, epsilon: float
    ) -> Tensor:
        low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
        adversarial = torch.clamp(start, low, high)
        for _ in range(self.steps):
            gradient = image_gradient(model, adversarial, target)
            adversarial = torch.clamp(
                adversarial + self.step * epsilon * gradient.sign(), low, high
            )
        return adversarial


def cached_images(spec: ModelSpec) -> int:
    """Return how many images a CPU takes at a time, from the network's widest layer."""
    widest = max(math.prod(behind) for _, _, _, behind in spec.shapes())
    return max(1, CACHED_BYTES // (4 * widest))
