"""A weight update as it travels: int8 per output channel with error feedback, or fp32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.messages import Encoding
from edge_sdk.protocol.tensors import (
    Array,
    Layout,
    compress,
    decompress,
    pack,
    packed_limit,
    unpack,
)
from models import Parameter, ParameterLayout

Flat = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncodedUpdate:
    """The bytes to send, and what they leave out: add `residual` to the next update."""

    data: bytes
    residual: Flat


def encode_update(
    update: Flat, layout: ParameterLayout, encoding: Encoding, *, residual: Flat | None = None
) -> EncodedUpdate:
    """Encode `update + residual`, a flat float32 vector of `layout`.

    int8: per output channel (per tensor for vectors), scale = max|x| / 127, rounded to nearest.
    The residual is the exact difference between what was wanted and what the server will decode
    (error feedback, Seide et al. 2014), so nothing is lost over the rounds.
    """
    wanted = update if residual is None else update + residual
    if not np.isfinite(wanted).all():
        raise ValueError("the update holds NaN or infinity; local training diverged")
    arrays: dict[str, Array] = {}
    for name, values in layout.split(np.ascontiguousarray(wanted, np.float32)).items():
        if encoding == "fp32":
            arrays[name] = values
            continue
        rows = _rows(values)
        scale = np.abs(rows).max(axis=1) / np.float32(127)
        safe = np.where(scale > 0, scale, np.float32(1))
        q = np.clip(np.rint(rows / safe[:, None]), -127, 127).astype(np.int8)
        arrays[f"{name}.q"] = q.reshape(values.shape)
        arrays[f"{name}.scale"] = scale.astype(np.float32)
    data = compress(pack(arrays))
    return EncodedUpdate(data, wanted - decode_update(data, layout, encoding))


def decode_update(data: bytes, layout: ParameterLayout, encoding: Encoding) -> Flat:
    """Return the flat float32 update in `data`, the same bits on every machine.

    Raises `ProtocolError` for data that is not exactly an update of this layout and encoding;
    memory is bounded by the layout whatever the data claims.
    """
    expected = _expected(layout, encoding)
    arrays = unpack(decompress(data, max_bytes=packed_limit(expected)), expected)
    parts: dict[str, npt.NDArray[np.float32]] = {}
    for p in layout.parameters:
        if encoding == "fp32":
            parts[p.name] = arrays[p.name].astype(np.float32, copy=False)
            continue
        scale = arrays[f"{p.name}.scale"].astype(np.float32, copy=False)
        if (scale < 0).any():
            raise ProtocolError(f"{p.name}.scale holds a negative scale")
        rows = _rows(arrays[f"{p.name}.q"].astype(np.float32))
        with np.errstate(over="ignore"):  # found below
            parts[p.name] = (rows * scale[:, None]).reshape(p.shape)
    flat = layout.join(parts)
    if not np.isfinite(flat).all():
        raise ProtocolError("the update overflows float32")
    return flat


def encode_weights(weights: Flat, layout: ParameterLayout) -> bytes:
    """Return full-precision weights as a plain safetensors file (zstd gains nothing on them)."""
    return pack(layout.split(weights))


def decode_weights(data: bytes, layout: ParameterLayout) -> Flat:
    """Return the flat float32 weights in a safetensors file; raises `ProtocolError` on a misfit."""
    arrays = unpack(data, _expected(layout, "fp32"))
    return layout.join({n: a.astype(np.float32, copy=False) for n, a in arrays.items()})


def _rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """One row an output channel; a vector is a single row."""
    return values.reshape(values.shape[0], -1) if values.ndim > 1 else values.reshape(1, -1)


def _scale_count(parameter: Parameter) -> int:
    return parameter.shape[0] if len(parameter.shape) > 1 else 1


def _expected(layout: ParameterLayout, encoding: Encoding) -> Layout:
    if encoding == "fp32":
        return {p.name: (p.shape, np.float32) for p in layout.parameters}
    expected: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {}
    for p in layout.parameters:
        expected[f"{p.name}.q"] = (p.shape, np.int8)
        expected[f"{p.name}.scale"] = ((_scale_count(p),), np.float32)
    return expected
