"""The ranges of activations that a quantized training program rounds to, kept while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.runtime.buffers import aligned_zeros

Float32 = npt.NDArray[np.float32]

# The weight of a micro-batch in the running mean of its least and largest values.
PART_OF_A_MICRO_BATCH = 0.05


class Ranges:
    """A running range `(2,)` for each quantized layer.

    The first micro-batch runs with empty ranges, which round nothing, and sets them; from then on a
    range is the exponential moving average of the micro-batches' least and largest values (Jacob et
    al. 2018, section 3.1). Changed in place, so that the arrays can stay a program's inputs.
    """

    def __init__(self, layers: int) -> None:
        self.arrays = [cast(Float32, aligned_zeros((2,))) for _ in range(layers)]
        for array in self.arrays:
            array[...] = 1, -1

    def update(self, observed: Sequence[Float32], examples: int) -> None:
        """Take in what the first `examples` rows of each `(micro_batch, 2)` array saw.

        Raises `ConfigError` where that is not finite: integers carry no NaN to the loss.
        """
        for array, seen in zip(self.arrays, observed, strict=True):
            low, high = seen[:examples, 0].min(), seen[:examples, 1].max()
            if not np.isfinite(high - low):
                raise ConfigError(
                    f"the inputs of a layer lie between {low} and {high}; "
                    "lower the learning rate or look for damaged images"
                )
            if array[0] > array[1]:
                array[...] = low, high
            else:
                array[0] += PART_OF_A_MICRO_BATCH * (low - array[0])
                array[1] += PART_OF_A_MICRO_BATCH * (high - array[1])
