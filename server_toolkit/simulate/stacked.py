"""Local training of many devices at once in torch, with the numerics of the devices' runtime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from edge_sdk.training.dataset import Dataset
from models import ModelSpec
from server_toolkit.errors import ConfigError
from server_toolkit.simulate.local import LocalJob, LocalResult
from server_toolkit.simulate.settings import FederationSettings
from server_toolkit.simulate.stacked_network import StackedNetwork

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One step's examples: global indices `(N, S)`, the share of each in its mean, its noise."""

    indices: Tensor
    shares: Tensor
    noise: Tensor | None


class StackedEngine:
    """Trains `together` devices at a time, one SGD step of each per pass over the stack.

    Batches are those of `edge_sdk.training.train` at the same seed, adversarial starts those of
    `train_adversarially`; gradients differ from the runtime's in the last bits of float32.
    """

    def __init__(self, spec: ModelSpec, settings: FederationSettings, *, together: int) -> None:
        self._spec, self._settings, self._together = spec, settings, together
        self._device = settings.device
        self._network = StackedNetwork(spec, device=settings.device)

    def train(
        self, jobs: Sequence[LocalJob], *, done: Callable[[int], None] = lambda _: None
    ) -> list[LocalResult]:
        """Return a result for every job; raises `ConfigError` naming a device that diverges."""
        order = sorted(range(len(jobs)), key=lambda i: -self._steps(jobs[i]))
        results: dict[int, LocalResult] = {}
        for first in range(0, len(order), self._together):
            part = order[first : first + self._together]
            stack = self._train_stack([jobs[i] for i in part], first, done)
            results |= dict(zip(part, stack, strict=True))
        return [results[i] for i in range(len(jobs))]

    def _steps(self, job: LocalJob) -> int:
        return self._settings.epochs * math.ceil(len(job.dataset) / self._settings.batch_size)

    def _train_stack(
        self, jobs: Sequence[LocalJob], before: int, done: Callable[[int], None]
    ) -> list[LocalResult]:
        """Train `jobs`, those with the most steps first: as some end, the stack gets shorter."""
        wall, cpu = time.perf_counter(), time.process_time()
        steps = [self._steps(job) for job in jobs]
        sizes = [len(job.dataset) for job in jobs]
        pixels, labels = self._examples([job.dataset for job in jobs])
        start = self._on_device(np.stack([job.start for job in jobs]))
        weights, velocity = start.clone(), torch.zeros_like(start)
        correction = None
        if any(job.correction is not None for job in jobs):
            rows = [np.zeros_like(j.start) if j.correction is None else j.correction for j in jobs]
            correction = self._on_device(np.stack(rows))
        losses = torch.zeros(len(jobs), max(steps), device=self._device)
        streams = [self._batches(job) for job in jobs]
        first_examples = np.cumsum([0, *sizes[:-1]])
        with _exact_convolutions():
            for step in range(max(steps)):
                active = sum(s > step for s in steps)
                batch = self._batch(streams[:active], first_examples)
                images, targets = pixels(batch.indices), labels[batch.indices]
                if batch.noise is not None:
                    images = self._attack(weights[:active], images, targets, batch)
                losses[:active, step] = self._step(
                    weights[:active], velocity[:active], start[:active],
                    None if correction is None else correction[:active],
                    images, targets, batch.shares,
                )  # fmt: skip
                done(before + len(jobs) * (step + 1) // max(steps))
        trained, found = weights.cpu().numpy(), losses.cpu().numpy()
        self._check(jobs, steps, found, trained)
        share = [s / sum(steps) for s in steps]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return [
            self._result(trained[i].copy(), found[i, :n], sizes[i], wall * p, cpu * p)
            for i, (n, p) in enumerate(zip(steps, share, strict=True))
        ]

    def _step(
        self,
        weights: Tensor,
        velocity: Tensor,
        start: Tensor,
        correction: Tensor | None,
        images: Tensor,
        targets: Tensor,
        shares: Tensor,
    ) -> Tensor:
        """Do one step of every network in place and return their mean losses `(S,)`."""
        settings = self._settings
        leaf = weights.detach().requires_grad_()
        loss = (self._losses(leaf, images, targets) * shares).sum(0)
        (direction,) = torch.autograd.grad(loss.sum(), leaf)
        if settings.weight_decay:
            direction = direction.add(weights, alpha=settings.weight_decay)
        if settings.proximal_mu:
            direction = direction.add(weights - start, alpha=settings.proximal_mu)
        if correction is not None:
            direction = direction + correction
        velocity.mul_(settings.momentum).add_(direction)
        weights.sub_(velocity, alpha=settings.learning_rate)
        return loss.detach()

    def _losses(self, weights: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Return every example's cross-entropy `(N, S)`."""
        logits = self._network.logits(self._network.split(weights), images)
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(
            targets.shape
        )

    def _attack(self, weights: Tensor, images: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Return PGD's images, as `edge_sdk.training.adversarial.PGD` moves them."""
        settings = self._settings
        assert batch.noise is not None
        low = (images - settings.epsilon).clamp_(min=0)
        high = (images + settings.epsilon).clamp_(max=1)
        moved = torch.minimum(torch.maximum(images + batch.noise, low), high)
        counted = (batch.shares > 0).to(images.dtype)
        for _ in range(settings.attack_steps):
            moved.requires_grad_()
            loss = (self._losses(weights, moved, targets) * counted).sum()
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach().add(gradient.sign_(), alpha=settings.step_size)
            moved = torch.minimum(torch.maximum(moved, low), high)
        return moved

    def _examples(self, datasets: Sequence[Dataset]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return what gives the images at global indices, and all labels, on the device."""
        white = float(datasets[0].white)
        if any(float(d.white) != white for d in datasets):
            raise ConfigError("the devices' images must all be bytes or all be float32")
        pixels = self._on_device(np.concatenate([d.pixels for d in datasets]))
        labels = self._on_device(np.concatenate([d.labels for d in datasets]))
        return lambda indices: pixels[indices].float() / white, labels

    def _batches(self, job: LocalJob) -> Iterator[tuple[Int64, npt.NDArray[np.float32] | None]]:
        """Yield a device's batches in the order of `train`, with the starts of its attack."""
        settings, size = self._settings, self._settings.batch_size
        rng = np.random.Generator(np.random.PCG64(job.seed))
        noise_rng = np.random.Generator(np.random.PCG64(job.seed).jumped())
        _, channels, height, width = job.dataset.pixels.shape
        for _ in range(settings.epochs):
            order = rng.permutation(len(job.dataset))
            for first in range(0, len(order), size):
                batch, noise = order[first : first + size], None
                if settings.objective == "pgd":
                    # The agent draws for whole micro-batches; rows that are no example count too.
                    rows = math.ceil(len(batch) / settings.micro_batch) * settings.micro_batch
                    noise = noise_rng.random((rows, height, width, channels), dtype=np.float32)
                    noise *= np.float32(2) * np.float32(settings.epsilon)
                    noise -= np.float32(settings.epsilon)
                    noise = noise[: len(batch)].transpose(0, 3, 1, 2)
                yield batch, noise

    def _batch(
        self,
        streams: Sequence[Iterator[tuple[Int64, npt.NDArray[np.float32] | None]]],
        first_examples: Int64,
    ) -> Batch:
        """Return every device's next batch side by side; what fills up a shorter one counts 0."""
        drawn = [next(stream) for stream in streams]
        longest = max(len(batch) for batch, _ in drawn)
        indices = np.zeros((longest, len(drawn)), np.int64)
        shares = np.zeros((longest, len(drawn)), np.float32)
        noises = None
        if drawn[0][1] is not None:
            noises = np.zeros((longest, len(drawn), *drawn[0][1].shape[1:]), np.float32)
        for column, (batch, noise) in enumerate(drawn):
            indices[: len(batch), column] = batch + first_examples[column]
            shares[: len(batch), column] = 1 / len(batch)
            if noises is not None and noise is not None:
                noises[: len(batch), column] = noise
        return Batch(
            self._on_device(indices),
            self._on_device(shares),
            None if noises is None else self._on_device(noises),
        )

    def _on_device(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _check(
        self,
        jobs: Sequence[LocalJob],
        steps: Sequence[int],
        losses: npt.NDArray[np.float32],
        weights: npt.NDArray[np.float32],
    ) -> None:
        for job, count, row, trained in zip(jobs, steps, losses, weights, strict=True):
            bad = np.flatnonzero(~np.isfinite(row[:count]))
            if len(bad) or not np.isfinite(trained).all():
                where = (
                    f"the loss of step {bad[0] + 1} is {row[bad[0]]}" if len(bad) else "diverged"
                )
                raise ConfigError(
                    f"{job.device}: {where}; lower the learning rate "
                    f"({self._settings.learning_rate}) or look for damaged images"
                )

    def _result(
        self,
        weights: npt.NDArray[np.float32],
        losses: npt.NDArray[np.float32],
        examples: int,
        wall_s: float,
        cpu_s: float,
    ) -> LocalResult:
        size = self._settings.batch_size
        counts = [min(size, examples - first) for first in range(0, examples, size)]
        means = losses.reshape(self._settings.epochs, -1) @ np.array(counts) / examples
        return LocalResult(
            weights=weights,
            steps=len(losses),
            loss_first_epoch=float(means[0]),
            loss_last_epoch=float(means[-1]),
            wall_s=wall_s,
            cpu_s=cpu_s,
        )


def _exact_convolutions() -> AbstractContextManager[None]:
    """Keep a GPU from rounding to TF32 and from choosing another algorithm the next time."""
    return cast(
        AbstractContextManager[None],
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    )
