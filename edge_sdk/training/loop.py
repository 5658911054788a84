"""The loop that all ways of training share: batches, gradients, steps, and what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NotRequired, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.runtime import Program, ProgramFile
from edge_sdk.training.dataset import Dataset, Int64
from edge_sdk.training.gradients import Gradients, StopRequested
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


class LoopOptions(TypedDict):
    """The keywords that every way of training takes; `train` says what they mean."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: NotRequired[float]
    weight_decay: NotRequired[float]
    proximal_mu: NotRequired[float]
    correction: NotRequired[Float32 | None]
    threads: NotRequired[int | None]
    should_stop: NotRequired[Callable[[], bool]]
    on_step: NotRequired[Callable[[int, int, float], None] | None]


class MakeGradients(Protocol):
    """`Gradients` or a kind of it, with its own options bound."""

    def __call__(
        self,
        file: ProgramFile,
        program: Program,
        weights: list[Float32],
        dataset: Dataset,
        should_stop: Callable[[], bool],
    ) -> Gradients:
        """Return the gradients of batches of `dataset`."""


def run(
    file: ProgramFile,
    start: Float32,
    dataset: Dataset,
    *,
    gradients: MakeGradients,
    batches: Callable[[], Iterable[Int64]],
    divisor: float | None = None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal_mu: float = 0.0,
    correction: Float32 | None = None,
    threads: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, int, float], None] | None = None,
) -> TrainingResult:
    """Train from the flat vector `start` on what `batches()` gives in each epoch.

    A batch's summed gradients are divided by its own size, or by `divisor`.
    Raises `ConfigError` for values that cannot be trained with, and when the loss is not finite.
    """
    _check(file, dataset, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    wall, cpu = time.perf_counter(), time.process_time()
    program = file.load_program(threads=threads)
    steps, losses, completed = 0, [], True
    all_steps = epochs * math.ceil(len(dataset) / batch_size)
    try:
        weights = file.to_program(start)
        found = gradients(file, program, weights, dataset, should_stop)
        optimizer = SGD(
            weights,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            proximal_mu=proximal_mu,
            correction=None if correction is None else file.to_program(correction),
        )
        for _ in range(epochs):
            total, examples = 0.0, 0
            for batch in batches():
                loss = found.accumulate(batch)
                if not math.isfinite(loss):
                    raise ConfigError(
                        f"the loss of step {steps + 1} is {loss}; lower the learning rate "
                        f"({learning_rate}) or look for damaged images"
                    )
                optimizer.step(found.sums, scale=1 / (divisor or len(batch)))
                steps, total, examples = steps + 1, total + loss, examples + len(batch)
                if on_step is not None:
                    on_step(steps, all_steps, _mean(loss, len(batch)))
            losses.append(_mean(total, examples))
    except StopRequested:
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


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan


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
