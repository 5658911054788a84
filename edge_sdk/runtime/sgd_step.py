"""One step of SGD over an array, in a single pass over memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import RuntimeLibraryError
from edge_sdk.runtime.library import last_error, native_library

Float32 = npt.NDArray[np.float32]


def sgd_step(
    weights: Float32,
    gradient: Float32,
    *,
    velocity: Float32 | None,
    start: Float32 | None,
    scale: float,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    proximal_mu: float,
) -> None:
    """Do `training.SGD`'s step in place on arrays of one shape; `gradient` is left zero.

    `velocity` is needed with a momentum, `start` with a proximal term. Raises `ValueError` for
    arrays that are not C-contiguous float32 of one size.
    """
    arrays = [a for a in (weights, gradient, velocity, start) if a is not None]
    for array in arrays:
        if array.dtype != np.float32 or array.size != weights.size:
            raise ValueError(f"expected {weights.size} float32, got {array.size} {array.dtype}")
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError("an array is read-only or not C-contiguous")
    if (momentum and velocity is None) or (proximal_mu and start is None):
        raise ValueError("momentum needs a velocity, a proximal term a start")
    library = native_library()
    pointers = [None if a is None else a.ctypes.data for a in (weights, gradient, velocity, start)]
    factors = (scale, learning_rate, momentum, weight_decay, proximal_mu)
    if library.trajsyn_sgd_step(*pointers, weights.size, *factors):
        raise RuntimeLibraryError(last_error(library))
