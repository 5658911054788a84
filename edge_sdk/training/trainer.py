"""Local training: an epoch loop over a training program, in numpy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.runtime import Program, ProgramFile, aligned_zeros
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.sgd import SGD

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What local training gave.

    `weights` `(size,) float32` in layout order; `samples` examples of the data set (the weight in
    FedAvg); `steps` optimiser steps done; the losses are means over an epoch's examples, measured
    while training. `completed` is False when a stop was requested: the weights are then those
    reached so far. `cpu_s` counts all threads of the process.
    """

    weights: Float32
    samples: int
    steps: int
    loss_first_epoch: float
    loss_last_epoch: float
    wall_s: float
    cpu_s: float
    completed: bool


def train(
    file: ProgramFile,
    start: Float32,
    dataset: Dataset,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal_mu: float = 0.0,
    threads: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, int, float], None] | None = None,
) -> TrainingResult:
    """Train from the flat vector `start`, which is left as it is.

    A step is torch.optim.SGD's on the mean loss of a batch, without dampening or Nesterov, with
    the gradient of proximal_mu / 2 * |w - start|^2 added (FedProx, Li et al. 2020, eq. 2).
    `should_stop` is asked before every micro-batch; `on_step(step, steps, mean_loss)` is called
    after every step. The same arguments give the same bits on the same machine and thread count.
    Raises `ConfigError` for values that cannot be trained with, and when the loss is not finite.
    """
    _check(file, dataset, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    wall, cpu = time.perf_counter(), time.process_time()
    program = file.load_program(threads=threads)
    steps, losses, completed = 0, [], True
    try:
        gradients = _Gradients(file, program, should_stop)
        weights = file.to_program(start)
        optimizer = SGD(
            weights,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            proximal_mu=proximal_mu,
        )
        rng = np.random.Generator(np.random.PCG64(seed))
        per_epoch = math.ceil(len(dataset) / batch_size)
        for _ in range(epochs):
            order, total = rng.permutation(len(dataset)), 0.0
            for first in range(0, len(order), batch_size):
                batch = order[first : first + batch_size]
                loss = gradients.accumulate(weights, dataset, batch)
                if not math.isfinite(loss):
                    raise ConfigError(
                        f"the loss of step {steps + 1} is {loss}; lower the learning rate "
                        f"({learning_rate}) or look for damaged images"
                    )
                optimizer.step(gradients.sums, scale=1 / len(batch))
                steps, total = steps + 1, total + loss
                if on_step is not None:
                    on_step(steps, epochs * per_epoch, loss / len(batch))
            losses.append(total / len(order))
    except _StopRequested:
        completed = False
    finally:
        program.close()
    return TrainingResult(
        weights=file.from_program(weights),
        samples=len(dataset),
        steps=steps,
        loss_first_epoch=losses[0] if losses else math.nan,
        loss_last_epoch=losses[-1] if losses else math.nan,
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        completed=completed,
    )


def _check(
    file: ProgramFile, dataset: Dataset, *, epochs: int, batch_size: int, learning_rate: float
) -> None:
    if file.kind != "training":
        raise ConfigError(f"an {file.kind} program cannot train; export a training program")
    if len(dataset) == 0:
        raise ConfigError("the data set is empty")
    if epochs < 1 or batch_size < 1 or not 0 < learning_rate < math.inf:
        raise ConfigError(
            f"epochs {epochs} and batch size {batch_size} must be at least 1, "
            f"and the learning rate {learning_rate} above 0"
        )
    dataset.require(file.spec)


class _StopRequested(Exception):  # noqa: N818 - no error
    """The caller wants training to end."""


class _Gradients:
    """Runs micro-batches and adds up their gradients in arrays that are made once."""

    def __init__(
        self, file: ProgramFile, program: Program, should_stop: Callable[[], bool]
    ) -> None:
        self._should_stop = should_stop
        self._program, self._is_input = program, file.is_input
        self._images, self._rows = (cast(Float32, i.empty()) for i in program.inputs[:2])
        self._loss, self._logits = (cast(Float32, o.empty()) for o in program.outputs[:2])
        self.sums = [cast(Float32, aligned_zeros(p.program_shape)) for p in file.parameters]
        self._parts = [cast(Float32, o.empty()) for o in program.outputs[2:]]

    def accumulate(
        self, weights: list[Float32], dataset: Dataset, batch: npt.NDArray[np.int64]
    ) -> float:
        """Write the gradients of the summed loss to `sums` and return that loss.

        The entries of parameters that the program does not take stay as they are, zero.
        """
        taken = [w for w, used in zip(weights, self._is_input, strict=True) if used]
        sums = [s for s, used in zip(self.sums, self._is_input, strict=True) if used]
        inputs, total = [self._images, self._rows, *taken], 0.0
        for first in range(0, len(batch), len(self._images)):
            if self._should_stop():
                raise _StopRequested
            self._fill(dataset, batch[first : first + len(self._images)])
            into = self._parts if first else sums
            self._program.execute(inputs, [self._loss, self._logits, *into])
            total += float(self._loss[0])
            if first:
                for whole, part in zip(sums, self._parts, strict=True):
                    whole += part
        return total

    def _fill(self, dataset: Dataset, indices: npt.NDArray[np.int64]) -> None:
        """Write images as NHWC and labels as one-hot rows; rows left over stay zero and count 0."""
        count = len(indices)
        self._images[:count] = dataset.images[indices].transpose(0, 2, 3, 1)
        self._images[count:] = 0
        self._rows[...] = 0
        self._rows[np.arange(count), dataset.labels[indices]] = 1
