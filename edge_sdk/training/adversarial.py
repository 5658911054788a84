"""Adversarial training on the device: what a fleet would have to do without TrajSyn's server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Unpack, cast

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.runtime import Program, ProgramFile
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.loop import LoopOptions, TrainingResult
from edge_sdk.training.trainer import train

Float32 = npt.NDArray[np.float32]


def train_adversarially(
    file: ProgramFile,
    attack_file: ProgramFile,
    start: Float32,
    dataset: Dataset,
    *,
    epsilon: float,
    step_size: float,
    attack_steps: int,
    seed: int,
    random_start: bool = True,
    **options: Unpack[LoopOptions],
) -> TrainingResult:
    """Train as `train` does, on images that PGD has moved against the weights of the moment.

    PGD-AT (Madry et al. 2018): from a uniform start in the l-infinity ball of radius `epsilon`
    (pixels in [0, 1]; 8/255 is usual), `attack_steps` steps of `step_size` along the sign of the
    loss gradient, each projected onto the ball and [0, 1]; then one step of SGD on the result.
    A step costs `attack_steps` runs of the attack program more than `train`'s. The losses are
    those of the adversarial images. With `epsilon` 0 the result is `train`'s, bit for bit. Beside
    a quantized training program the attack itself is not quantized.
    Raises `ConfigError` as `train`, and where the two programs do not belong together.
    """
    if attack_file.kind != "attack":
        raise ConfigError(
            f"a program of kind {attack_file.kind} cannot attack; export an attack program"
        )
    if (attack_file.spec, attack_file.parameters, attack_file.micro_batch) != (
        file.spec,
        file.parameters,
        file.micro_batch,
    ):
        raise ConfigError("the attack program is for another network or micro-batch")
    if not (0 <= epsilon <= 1 and 0 <= step_size < math.inf and attack_steps >= 0):
        raise ConfigError(
            f"epsilon {epsilon} must lie in [0, 1]; the step size {step_size} and the "
            f"{attack_steps} attack steps must not be negative"
        )
    with closing(attack_file.load_program(threads=options.get("threads"))) as program:
        attack = PGD(
            program,
            epsilon=epsilon,
            step_size=step_size,
            steps=attack_steps,
            # Jumped: no draw of the shuffling's generator, which has the same seed, comes twice.
            rng=np.random.Generator(np.random.PCG64(seed).jumped()) if random_start else None,
        )
        return train(file, start, dataset, seed=seed, perturb=attack, **options)


class PGD:
    """Projected gradient ascent on the images among an attack program's inputs, in place.

    Arrays are made once. Without `rng` it starts at the images themselves.
    """

    def __init__(
        self,
        program: Program,
        *,
        epsilon: float,
        step_size: float,
        steps: int,
        rng: np.random.Generator | None,
    ) -> None:
        self._program, self._steps, self._rng = program, steps, rng
        self._epsilon, self._step_size = np.float32(epsilon), np.float32(step_size)
        self._outputs = [cast(Float32, o.empty()) for o in program.outputs]
        self._low, self._high = (np.empty_like(self._outputs[2]) for _ in range(2))

    def __call__(self, inputs: Sequence[Float32]) -> None:
        """Move `inputs[0]`, `(micro_batch, H, W, C) float32 in [0, 1]`."""
        images, move = inputs[0], self._outputs[2]
        taken = inputs[: len(self._program.inputs)]  # the ranges of a quantized program are not
        np.subtract(images, self._epsilon, out=self._low)
        np.maximum(self._low, 0, out=self._low)
        np.add(images, self._epsilon, out=self._high)
        np.minimum(self._high, 1, out=self._high)
        if self._rng is not None:
            self._rng.random(out=move, dtype=np.float32)
            move *= 2 * self._epsilon
            move -= self._epsilon
            self._go(images, move)
        for _ in range(self._steps):
            self._program.execute(taken, self._outputs)
            np.sign(move, out=move)
            move *= self._step_size
            self._go(images, move)

    def _go(self, images: Float32, move: Float32) -> None:
        images += move
        np.maximum(images, self._low, out=images)
        np.minimum(images, self._high, out=images)
