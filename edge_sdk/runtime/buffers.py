"""Arrays laid out as the kernels like them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

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


def aligned_views(
    shapes: Sequence[tuple[int, ...]],
) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]:
    """Return a flat zero array and views of it in these shapes, each as `aligned_zeros`' arrays.

    What lies between the views is zero and never written, so that sums, norms and products of
    the flat array are those of all views together.
    """
    spaced = [-(-(4 * math.prod(s) + 16) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES // 4 for s in shapes]
    starts = list(itertools.accumulate(spaced, initial=0))
    flat = cast("npt.NDArray[np.float32]", aligned_zeros((starts[-1],)))
    views = [
        flat[start : start + math.prod(shape)].reshape(shape)
        for start, shape in zip(starts, shapes, strict=False)
    ]
    return flat, views
