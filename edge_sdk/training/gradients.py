"""A batch's gradients: micro-batches through a training program, added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from edge_sdk.runtime import Program, ProgramFile
from edge_sdk.runtime.buffers import aligned_views
from edge_sdk.training.dataset import Dataset, Int64
from edge_sdk.training.ranges import Ranges

Float32 = npt.NDArray[np.float32]
Perturb = Callable[[Sequence[Float32]], None]


class StopRequested(Exception):  # noqa: N818 - no error
    """The caller wants training to end."""


class Gradients:
    """Runs micro-batches and adds up their gradients in arrays that are made once.

    `weights` are `ProgramFile.to_program`'s arrays, read anew at every run. `perturb` is called
    with the program's inputs before every run and may change the images, `inputs[0]`, in place.
    """

    def __init__(
        self,
        file: ProgramFile,
        program: Program,
        weights: Sequence[Float32],
        dataset: Dataset,
        should_stop: Callable[[], bool],
        *,
        perturb: Perturb | None = None,
    ) -> None:
        shapes = [p.program_shape for p in file.parameters]
        self._flat_sums, self.sums = aligned_views(shapes)
        self._flat_part, parts = aligned_views(shapes)
        self._program, self._should_stop, self._perturb = program, should_stop, perturb
        self._pixels, self._white = dataset.pixels.transpose(0, 2, 3, 1), dataset.white
        self._labels = dataset.labels
        self._images, self._rows = (cast(Float32, i.empty()) for i in program.inputs[:2])
        self._loss, logits = (cast(Float32, o.empty()) for o in program.outputs[:2])
        used = [i for i, is_input in enumerate(file.is_input) if is_input]
        self._ranges = Ranges(len(file.ranges))
        self._observed = [
            cast(Float32, o.empty())
            for o in program.outputs[len(program.outputs) - len(file.ranges) :]
        ]
        self._inputs = [self._images, self._rows, *(weights[i] for i in used)]
        self._inputs += self._ranges.arrays
        self._into_sums = [self._loss, logits, *(self.sums[i] for i in used), *self._observed]
        self._into_part = [self._loss, logits, *(parts[i] for i in used), *self._observed]

    def accumulate(self, batch: Int64) -> float:
        """Write the gradients of the summed loss to `sums` and return that loss.

        The entries of parameters that the program does not take stay as they are, zero.
        """
        total = 0.0
        for first in range(0, len(batch), len(self._images)):
            indices = batch[first : first + len(self._images)]
            total += self._run(indices, self._into_part if first else self._into_sums)
            if first:
                self._flat_sums += self._flat_part
        return total

    def _run(self, indices: Int64, outputs: Sequence[Float32]) -> float:
        """Run the program on at most a micro-batch of examples and return their summed loss."""
        if self._should_stop():
            raise StopRequested
        self._fill(indices)
        if self._perturb is not None:
            self._perturb(self._inputs)
        self._program.execute(self._inputs, outputs)
        self._ranges.update(self._observed, len(indices))
        return float(self._loss[0])

    def _fill(self, indices: Int64) -> None:
        """Write images as NHWC and labels as one-hot rows; rows left over stay zero and count 0."""
        self._rows.fill(0)
        for row, index in enumerate(indices):
            self._images[row] = self._pixels[index]
            self._rows[row, self._labels[index]] = 1
        self._images[len(indices) :] = 0
        self._images /= self._white
