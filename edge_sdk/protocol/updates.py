"""A weight update as it travels: int8, int4, the largest entries (topk), or fp32."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol import quantized, sparse
from edge_sdk.protocol.messages import ENCODING, Encoding
from edge_sdk.protocol.tensors import (
    Array,
    Layout,
    compress,
    decompress,
    pack,
    packed_limit,
    unpack,
)
from models import ParameterLayout

Flat = npt.NDArray[np.float32]
BITS: dict[Encoding, quantized.Bits] = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class EncodedUpdate:
    """The bytes to send, and what they leave out: add `residual` to the next update."""

    data: bytes
    residual: Flat


def kept_entries(encoding: Encoding, size: int) -> int:
    """Return how many of `size` entries "topk-0.01" sends: a hundredth, rounded down, at least 1.

    Counted in integers, so that both sides agree. Raises `ProtocolError` for an unknown encoding.
    """
    if not encoding.startswith("topk-") or not re.fullmatch(ENCODING, encoding):
        raise ProtocolError(f"{encoding[:40]!r} is no known encoding")
    thousandths = int(encoding.removeprefix("topk-0.").ljust(3, "0"))
    return max(1, size * thousandths // 1000)


def encode_update(
    update: Flat, layout: ParameterLayout, encoding: Encoding, *, residual: Flat | None = None
) -> EncodedUpdate:
    """Encode `update + residual`, a flat float32 vector of `layout`.

    The residual is the exact difference between what was wanted and what the server will decode
    (error feedback, Seide et al. 2014; Karimireddy et al. 2019), so nothing is lost over the
    rounds. Raises `ValueError` for NaN, infinity, and a vector of another layout, `ProtocolError`
    for an unknown encoding.
    """
    wanted = update if residual is None else update + residual
    if not np.isfinite(wanted).all():
        raise ValueError("the update holds NaN or infinity; local training diverged")
    wanted = np.ascontiguousarray(wanted, np.float32)
    arrays: dict[str, Array] = dict(layout.split(wanted))
    if encoding in BITS:
        arrays = quantized.quantize(wanted, layout, BITS[encoding])
    elif encoding != "fp32":
        arrays = sparse.keep_largest(wanted, kept_entries(encoding, layout.size))
    data = compress(pack(arrays))
    return EncodedUpdate(data, wanted - decode_update(data, layout, encoding))


def decode_update(data: bytes, layout: ParameterLayout, encoding: Encoding) -> Flat:
    """Return the flat float32 update in `data`, the same bits on every machine.

    Raises `ProtocolError` for data that is not exactly an update of this layout and encoding;
    memory is bounded by the layout whatever the data claims.
    """
    expected = _expected(layout, encoding)
    arrays = unpack(decompress(data, max_bytes=packed_limit(expected)), expected)
    if encoding == "fp32":
        return _join(arrays, layout)
    if encoding in BITS:
        flat = quantized.dequantize(arrays, layout, BITS[encoding])
    else:
        flat = sparse.spread(arrays, layout.size)
    if not np.isfinite(flat).all():
        raise ProtocolError("the update overflows float32")
    return flat


def encode_weights(weights: Flat, layout: ParameterLayout) -> bytes:
    """Return full-precision weights as a plain safetensors file (zstd gains nothing on them)."""
    return pack(layout.split(weights))


def decode_weights(data: bytes, layout: ParameterLayout) -> Flat:
    """Return the flat float32 weights in a safetensors file; raises `ProtocolError` on a misfit."""
    return _join(unpack(data, _expected(layout, "fp32")), layout)


def _join(arrays: dict[str, Array], layout: ParameterLayout) -> Flat:
    return layout.join({n: a.astype(np.float32, copy=False) for n, a in arrays.items()})


def _expected(layout: ParameterLayout, encoding: Encoding) -> Layout:
    if encoding == "fp32":
        return {p.name: (p.shape, np.float32) for p in layout.parameters}
    if encoding in BITS:
        return quantized.array_layout(layout, BITS[encoding])
    return sparse.array_layout(kept_entries(encoding, layout.size))
