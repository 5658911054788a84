"""The largest entries of a vector: where they are, and int8 codes with one scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.quantized import from_bfloat16, to_bfloat16
from edge_sdk.protocol.tensors import Array, Layout

Flat = npt.NDArray[np.float32]


def keep_largest(values: Flat, count: int) -> dict[str, Array]:
    """Return `gaps`, `codes` and `scale` of the `count` entries of largest magnitude.

    Of equal magnitudes the first ones are kept. A gap is the distance to the kept entry before
    (the first: to the start); the gaps' little-endian bytes lie in four planes, of which zstd
    makes nearly the entropy. The scale is max|x| / 127, bfloat16, rounded up.
    """
    magnitudes = np.abs(values)
    threshold = np.partition(magnitudes, -count)[-count]
    above = np.flatnonzero(magnitudes > threshold)
    equal = np.flatnonzero(magnitudes == threshold)[: count - len(above)]
    indices = np.sort(np.concatenate([above, equal]))
    halves = to_bfloat16(magnitudes[indices].max(keepdims=True) / np.float64(127))
    scale = from_bfloat16(halves)
    safe = np.where(scale > 0, scale, np.float32(1))
    codes = np.clip(np.rint(values[indices] / safe), -127, 127)
    gaps = np.diff(indices, prepend=0).astype("<u4")
    return {
        "gaps": gaps.view(np.uint8).reshape(count, 4).T,
        "codes": codes.astype(np.int8),
        "scale": halves,
    }


def array_layout(count: int) -> Layout:
    """Return the arrays of `count` kept entries."""
    return {
        "gaps": ((4, count), np.uint8),
        "codes": ((count,), np.int8),
        "scale": ((1,), np.uint16),
    }


def spread(arrays: Mapping[str, Array], size: int) -> Flat:
    """Return the flat (size,) float32 vector, 0 where nothing was kept, infinite on overflow.

    `arrays` fit `array_layout`. Raises `ProtocolError` for a place that is repeated or beyond
    the end, and for a scale or code that `keep_largest` cannot have made.
    """
    planes = arrays["gaps"].astype(np.uint8, copy=False)
    gaps = np.ascontiguousarray(planes.T).view("<u4").ravel()
    if (gaps[1:] == 0).any():
        raise ProtocolError("a place of a sparse update is repeated")
    indices = np.cumsum(gaps, dtype=np.uint64)
    if indices[-1] >= size:
        raise ProtocolError(f"a sparse update reaches place {indices[-1]} of {size}")
    flat = np.zeros(size, np.float32)
    if (arrays["codes"] == -128).any():
        raise ProtocolError("an int8 code is -128")
    with np.errstate(over="ignore"):
        scale = from_bfloat16(arrays["scale"].astype(np.uint16, copy=False))
        flat[indices.astype(np.int64)] = arrays["codes"].astype(np.float32) * scale
    return flat
