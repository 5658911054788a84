"""DP-SGD on the device: clipped per-example gradients, noise, and what they have spent."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.runtime import Program, ProgramFile
from edge_sdk.training import loop
from edge_sdk.training.dataset import Dataset, Int64
from edge_sdk.training.gradients import Gradients
from edge_sdk.training.loop import LoopOptions, TrainingResult
from edge_sdk.training.privacy_accountant import NoisySteps, epsilon_spent
from edge_sdk.training.secure_random import SecureRandom

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PrivateTrainingResult(TrainingResult):
    """Training's result and what has been spent, this call's steps included.

    The weights are (`epsilon`, `delta`)-private; `history` is what the next call takes. The losses
    are measured without noise, and times follow the drawn batches: they are for the device alone.
    """

    epsilon: float
    delta: float
    history: tuple[NoisySteps, ...]


def train_privately(
    file: ProgramFile,
    start: Float32,
    dataset: Dataset,
    *,
    clip_norm: float,
    noise_multiplier: float,
    delta: float,
    history: Sequence[NoisySteps] = (),
    insecure_seed: int | None = None,
    **options: Unpack[LoopOptions],
) -> PrivateTrainingResult:
    """Train with DP-SGD (Abadi et al. 2016) from the flat vector `start`; `file` takes one image.

    Each example enters a step by itself with the probability batch_size / examples (Poisson
    sampling), so that batches differ in size and can be empty; an epoch has as many steps as
    `train`'s. An example's gradient, all parameters as one vector, is scaled to at most
    `clip_norm`. Normal noise of deviation `noise_multiplier * clip_norm` is added to the sum,
    which is divided by the expected batch size. Momentum, weight decay and the proximal term act
    behind the noise and cost nothing.

    `history` is what earlier calls on the same images returned; its steps count into `epsilon`.
    The random numbers are cryptographically secure unless `insecure_seed` is given, which voids
    the guarantee. Other options and errors are `train`'s.
    """
    if file.kind == "training" and file.micro_batch != 1:
        raise ConfigError(
            f"the program takes {file.micro_batch} images at once; gradients of single images need "
            "one exported with a micro-batch of 1"
        )
    if file.ranges:
        raise ConfigError(
            "the ranges of a quantized program follow all images without noise, and every gradient "
            "follows the ranges; private training needs a program that is not quantized"
        )
    if not 0 < clip_norm < math.inf:
        raise ConfigError(f"the clipping norm is {clip_norm}; it must be above 0")
    expected = min(options["batch_size"], len(dataset))
    rate = expected / max(len(dataset), 1)
    spent = NoisySteps(noise_multiplier, rate, steps=0)
    epsilon_spent(history, delta=delta)  # a wrong delta is found before the work
    rng = SecureRandom(insecure_seed=insecure_seed)
    steps = math.ceil(len(dataset) / max(options["batch_size"], 1))

    def sampled() -> Iterator[Int64]:
        for _ in range(steps):
            yield rng.choose(len(dataset), rate)

    result = loop.run(
        file,
        start,
        dataset,
        gradients=functools.partial(
            PrivateGradients, clip_norm=clip_norm, noise_multiplier=noise_multiplier, rng=rng
        ),
        batches=sampled,
        divisor=expected,
        **options,
    )
    whole = (*history, dataclasses.replace(spent, steps=result.steps))
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(TrainingResult)}
    return PrivateTrainingResult(
        **fields, epsilon=epsilon_spent(whole, delta=delta), delta=delta, history=whole
    )


class PrivateGradients(Gradients):
    """Sums of clipped gradients with noise; the program's micro-batch is one image.

    A parameter that the program does not take has no gradient on any image: it gets no noise.
    """

    def __init__(
        self,
        file: ProgramFile,
        program: Program,
        weights: Sequence[Float32],
        dataset: Dataset,
        should_stop: Callable[[], bool],
        *,
        clip_norm: float,
        noise_multiplier: float,
        rng: SecureRandom,
    ) -> None:
        super().__init__(file, program, weights, dataset, should_stop)
        self._clip_norm, self._deviation, self._rng = clip_norm, noise_multiplier * clip_norm, rng
        self._noised = [s for s, taken in zip(self.sums, file.is_input, strict=True) if taken]

    def accumulate(self, batch: Int64) -> float:
        """Write the noisy sum to `sums`, zero before, and return the summed loss."""
        total = 0.0
        for index in range(len(batch)):
            total += self._run(batch[index : index + 1], self._into_part)
            # einsum and not dot, which may start BLAS's threads beside the program's
            norm = math.sqrt(float(np.einsum("i,i->", self._flat_part, self._flat_part)))
            if not math.isfinite(norm):
                return math.nan  # no scale makes such a gradient harmless
            if norm > self._clip_norm:
                self._flat_part *= np.float32(self._clip_norm / norm)
            self._flat_sums += self._flat_part
        if self._deviation:
            for values in self._noised:
                self._rng.add_normal(values.reshape(-1), self._deviation)
        return total
