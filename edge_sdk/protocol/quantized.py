"""int8 and int4 codes with a scale for each output channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.tensors import Array, Layout
from models import ParameterLayout

STEPS_PER_RMS = 28.0
_LARGEST_BFLOAT16 = 0x7F7F

Bits = Literal[8, 4]
Flat = npt.NDArray[np.float32]
UInt16 = npt.NDArray[np.uint16]


def quantize(values: Flat, layout: ParameterLayout, bits: Bits) -> dict[str, Array]:
    """Return `codes` and `scales` of a flat vector, rounded to nearest; shapes: `array_layout`.

    A channel is an output channel of a weight or a whole vector. Its scale is max|x| divided by
    the largest code (127 or 7), but at least its root mean square / 28: finer steps only cost
    bytes, in channels whose values are all of one size. Scales are bfloat16, rounded up, so a code
    times its scale is exact in float32, and so is what is left over.
    """
    largest = _largest_code(bits)
    codes, scales = [], []
    for rows in _channels(values, layout):
        peak = np.abs(rows).max(axis=1)
        rms = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))
        halves = to_bfloat16(np.maximum(peak / largest, rms / STEPS_PER_RMS))
        scale = from_bfloat16(halves)
        safe = np.where(scale > 0, scale, np.float32(1))
        codes.append(np.clip(np.rint(rows / safe[:, None]), -largest, largest).ravel())
        scales.append(halves)
    joined = np.concatenate(codes).astype(np.int8)
    return {
        "codes": joined if bits == 8 else pack_nibbles(joined),
        "scales": np.concatenate(scales),
    }


def array_layout(layout: ParameterLayout, bits: Bits) -> Layout:
    """Return how the N parameters travel.

    `codes` is (N,) int8, or (⌈N/2⌉,) uint8 with two codes in each; `scales` is (channels,) uint16,
    the upper halves of float32 numbers, in layout order.
    """
    channels = sum(p.shape[0] if len(p.shape) > 1 else 1 for p in layout.parameters)
    scales = ((channels,), np.uint16)
    if bits == 8:
        return {"codes": ((layout.size,), np.int8), "scales": scales}
    return {"codes": (((layout.size + 1) // 2,), np.uint8), "scales": scales}


def dequantize(arrays: Mapping[str, Array], layout: ParameterLayout, bits: Bits) -> Flat:
    """Return codes times scales as flat float32, infinite where that overflows.

    `arrays` fit `array_layout`. Raises `ProtocolError` for a scale or a code that `quantize`
    cannot have made.
    """
    codes = arrays["codes"]
    if (codes == -128).any():
        raise ProtocolError("an int8 code is -128")
    if bits == 4:
        codes = unpack_nibbles(codes.astype(np.uint8, copy=False), layout.size)
    scales = from_bfloat16(arrays["scales"].astype(np.uint16, copy=False))
    flat = codes.astype(np.float32)
    first = 0
    for rows in _channels(flat, layout):
        with np.errstate(over="ignore"):
            rows *= scales[first : first + len(rows), None]
        first += len(rows)
    return flat


def to_bfloat16(values: npt.NDArray[np.floating]) -> UInt16:
    """Return the upper halves of non-negative numbers as float32, rounded up."""
    return ((values.astype(np.float32).view(np.uint32) + 0xFFFF) >> 16).astype(np.uint16)


def from_bfloat16(halves: UInt16) -> Flat:
    """Return these float32 numbers; raises `ProtocolError` for one below 0, infinity or NaN."""
    if (halves > _LARGEST_BFLOAT16).any():
        raise ProtocolError("a scale is negative, infinite or NaN")
    return (halves.astype(np.uint32) << 16).view(np.float32)


def pack_nibbles(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return (⌈N/2⌉,) uint8: code + 8 of the even places in the low half, of the odd in the high.

    A last place without a partner has a 0 beside it.
    """
    padded = np.zeros(len(codes) + len(codes) % 2, np.int8)
    padded[: len(codes)] = codes
    nibbles = (padded + 8).astype(np.uint8)
    packed: npt.NDArray[np.uint8] = nibbles[::2] | (nibbles[1::2] << np.uint8(4))
    return packed


def unpack_nibbles(packed: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int8]:
    """Return the `count` codes of `pack_nibbles`; raises `ProtocolError` for a code of -8."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).ravel()
    if (nibbles == 0).any() or (nibbles[count:] != 8).any():
        raise ProtocolError("an int4 code is not from -7 to 7, or the padding is not 0")
    return nibbles[:count].astype(np.int8) - 8


def _largest_code(bits: Bits) -> int:
    return (1 << (bits - 1)) - 1


def _channels(flat: Flat, layout: ParameterLayout) -> Iterator[Flat]:
    """Yield a view (channels, values) of every parameter; a vector is one channel."""
    for parameter, place in layout.slices():
        rows = parameter.shape[0] if len(parameter.shape) > 1 else 1
        yield flat[place].reshape(rows, -1)
