"""Plain local training: shuffled epochs over a training program, in numpy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from edge_sdk.runtime import ProgramFile
from edge_sdk.training import loop
from edge_sdk.training.dataset import Dataset, Int64
from edge_sdk.training.gradients import Gradients, Perturb
from edge_sdk.training.loop import TrainingResult

Float32 = npt.NDArray[np.float32]


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
    correction: Float32 | None = None,
    threads: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, int, float], None] | None = None,
    perturb: Perturb | None = None,
) -> TrainingResult:
    """Train from the flat vector `start`, which is left as it is.

    A step is torch.optim.SGD's on the mean loss of a batch, without dampening or Nesterov, with
    the gradient of proximal_mu / 2 * |w - start|^2 added (FedProx, Li et al. 2020, eq. 2), and the
    flat vector `correction` (c - c_i in SCAFFOLD, Karimireddy et al. 2020, algorithm 1).
    `should_stop` is asked before every micro-batch; `on_step(step, steps, mean_loss)` is called
    after every step; `perturb` is `Gradients`'. The same arguments give the same bits on the same
    machine and thread count.
    Raises `ConfigError` for values that cannot be trained with, and when the loss is not finite.
    """
    rng = np.random.Generator(np.random.PCG64(seed))

    def shuffled() -> Iterator[Int64]:
        order = rng.permutation(len(dataset))
        for first in range(0, len(order), batch_size):
            yield order[first : first + batch_size]

    return loop.run(
        file,
        start,
        dataset,
        gradients=functools.partial(Gradients, perturb=perturb),
        batches=shuffled,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        proximal_mu=proximal_mu,
        correction=correction,
        threads=threads,
        should_stop=should_stop,
        on_step=on_step,
    )
