"""What a hardening step trains on: images drawn, blended and augmented, and their labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server_toolkit.robust.augment import flip, shift
from server_toolkit.robust.harden_config import HardenConfig


class Batches:
    """Draws batches from `images` `(N, C, H, W)` with `labels` `(N, classes)`, and from real ones.

    With `config.real_share` a batch has that share of real images, rounded to whole ones; without,
    the real ones are repeated until they are about as many as the others, and both are one set:
    measured better than once each (docs/robustness.md).
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        real: tuple[Tensor, Tensor] | None,
        config: HardenConfig,
    ) -> None:
        self._config = config
        self._pools = [len(images)]  # neighbouring parts of the set, each drawn from on its own
        self._takes = [config.batch_size]
        if real is not None:
            times = 1
            if config.real_share is None:
                times = max(1, round(len(images) / len(real[0])))
                self._pools = [len(images) + times * len(real[0])]
            else:
                taken = round(config.real_share * config.batch_size)
                self._pools = [len(images), len(real[0])]
                self._takes = [config.batch_size - taken, taken]
            images = torch.cat([images, real[0].repeat(times, 1, 1, 1)])
            labels = torch.cat([labels, real[1].repeat(times, 1)])
        self._images, self._labels = images, labels

    def draw(self, number: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Return batch `number` and the generator with which to go on.

        Seeding by number leaves no generator state to keep in a checkpoint.
        """
        config = self._config
        generator = torch.Generator().manual_seed(_seed(config.seed, number))
        chosen = self._choose(generator)
        x, q = self._images[chosen], self._labels[chosen]
        if torch.rand((), generator=generator) < config.mix_probability:
            other = self._choose_others(generator)
            share = torch.rand(len(x), generator=generator).to(x.device)
            x = torch.lerp(self._images[other], x, share[:, None, None, None])
            q = torch.lerp(self._labels[other], q, share[:, None])
        if config.shift_pixels:
            x = shift(
                x, max_pixels=config.shift_pixels, generator=generator, fill=config.shift_fill
            )
        if config.flips:
            x = flip(x, generator=generator)
        return x, q, generator

    def _choose(self, generator: torch.Generator) -> Tensor:
        """Return a batch's indices, drawn without replacement where it can be."""
        chosen, first = [], 0
        for size, take in zip(self._pools, self._takes, strict=True):
            repeats = -(-take // size)
            draws = [torch.randperm(size, generator=generator) for _ in range(repeats)]
            chosen.append(first + torch.cat(draws)[:take] if draws else torch.empty(0).long())
            first += size
        return torch.cat(chosen).to(self._images.device)

    def _choose_others(self, generator: torch.Generator) -> Tensor:
        """Return the indices to blend with, drawn with replacement in the batch's shares."""
        chosen, first = [], 0
        for size, take in zip(self._pools, self._takes, strict=True):
            chosen.append(first + torch.randint(size, (take,), generator=generator))
            first += size
        others = torch.cat(chosen)
        if len(self._pools) > 1:  # else both parts would only be blended with themselves
            others = others[torch.randperm(len(others), generator=generator)]
        return others.to(self._images.device)


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
