"""Named arrays as safetensors bytes, compressed with zstd, and their bounded, checked decoding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import zstandard

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.schema import parse_json

Array = npt.NDArray[np.generic]
Layout = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]

_LEVEL = 3  # higher levels buy nothing on trained weights
_MAX_ZSTD_WINDOW_BYTES = 8 << 20
_MAX_HEADER_BYTES = 1 << 20


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Return `arrays` as safetensors, in sorted order of their names."""
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    return bytes(safetensors.numpy.save(ordered))


def unpack(data: bytes, expected: Layout) -> dict[str, Array]:
    """Return exactly the expected names, shapes and dtypes; raises `ProtocolError` naming a misfit.

    Floats must be finite and names unique: safetensors itself lets NaN, infinity and repeated
    names pass.
    """
    if len(data) > packed_limit(expected):
        raise ProtocolError(f"tensor file of {len(data)} bytes; limit {packed_limit(expected)}")
    header_bytes = int.from_bytes(data[:8], "little")
    try:
        parse_json(data[8 : 8 + header_bytes], max_bytes=_MAX_HEADER_BYTES)
        arrays: dict[str, Array] = safetensors.numpy.load(data)
    except (ProtocolError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"not a tensor file: {error}") from error
    if arrays.keys() != expected.keys():
        odd = sorted(arrays.keys() ^ expected.keys())
        raise ProtocolError(f"unknown or missing tensors: {', '.join(map(repr, odd))[:200]}")
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != dtype:
            found = f"{array.shape} {array.dtype}"
            raise ProtocolError(f"{name} is {found}; expected {shape} {np.dtype(dtype).name}")
        if np.issubdtype(dtype, np.floating) and not np.isfinite(array).all():
            raise ProtocolError(f"{name} holds NaN or infinity")
    return arrays


def packed_limit(expected: Layout) -> int:
    """Return the most bytes that a tensor file of this layout can have."""
    payload = sum(
        int(np.prod(shape, dtype=np.int64)) * np.dtype(d).itemsize for shape, d in expected.values()
    )
    return payload + _MAX_HEADER_BYTES


def compress(data: bytes) -> bytes:
    """Return `data` as one zstd frame."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)


def decompress(data: bytes, *, max_bytes: int) -> bytes:
    """Return the content of exactly one zstd frame that declares its size.

    Raises `ProtocolError` above `max_bytes`, for a window above 8 MiB, and for missing or extra
    bytes. `max_output_size` would not bound a frame that declares its size, so the declaration is
    checked first; zstd itself holds the content to it.
    """
    try:
        parameters = zstandard.get_frame_parameters(data)
        declared = parameters.content_size
        if declared in (0, zstandard.CONTENTSIZE_UNKNOWN):
            raise ProtocolError("compressed data is empty or does not declare its size")
        if declared > max_bytes:
            raise ProtocolError(f"compressed data unpacks to {declared} bytes; limit {max_bytes}")
        if parameters.window_size > _MAX_ZSTD_WINDOW_BYTES:
            raise ProtocolError(f"compressed data wants a window of {parameters.window_size} bytes")
        limits = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
        return limits.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"not zstd data: {error}") from error
