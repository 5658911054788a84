"""Arrays laid out as the kernels like them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

# XNNPACK is fastest on cache-line boundaries and reads up to 16 bytes beyond a tensor's end.
ALIGNMENT_BYTES = 64


def aligned_zeros(
    shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[np.generic]:
    """Return zeros of `shape` on a cache-line boundary, with spare bytes behind them."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    raw = np.zeros(size + 2 * ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + size].view(kind).reshape(shape)
