"""One safetensors file with JSON fields in its header, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edge_sdk.protocol.part_file import write_durably
from server_toolkit.errors import ConfigError

Array = npt.NDArray[Any]
FIELDS_KEY = "trajsyn"  # safetensors headers map strings to strings; ours holds one JSON text
DIGEST_KEY = "sha256"  # of the other fields and the arrays


def write_tensor_file(path: Path, tensors: Mapping[str, Array], fields: Mapping[str, Any]) -> None:
    """Replace `path` by a file of these arrays and JSON fields; a power cut leaves old or new."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    text = json.dumps({**fields, DIGEST_KEY: _digest(contiguous, fields)}, sort_keys=True)
    payload = save(contiguous, metadata={FIELDS_KEY: text})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, payload)


def read_tensor_file(path: Path, *, max_bytes: int) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays and the JSON fields of `path`.

    Raises `ConfigError` naming the file where it is missing, larger than `max_bytes`, no
    safetensors file, without our fields, or no longer as it was written.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ConfigError(f"{path}: {size} bytes; at most {max_bytes} are read")
        payload = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        tensors = load(payload)
        header_bytes = int.from_bytes(payload[:8], "little")
        header = json.loads(payload[8 : 8 + header_bytes])
        fields = json.loads(header["__metadata__"][FIELDS_KEY])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: not a file of this toolkit, or damaged: {error}; remove it"
        ) from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: header field {FIELDS_KEY} must be a JSON object")
    if fields.pop(DIGEST_KEY, None) != _digest(tensors, fields):
        raise ConfigError(f"{path}: damaged, its content is not what was written; remove it")
    return tensors, fields


def _digest(tensors: Mapping[str, Array], fields: Mapping[str, Any]) -> str:
    """Return the sha256 of everything in a file but itself: safetensors has no checksum."""
    digest = hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
