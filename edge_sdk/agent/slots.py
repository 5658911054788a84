"""The two places for installed models, A and B, and the checks made whenever one is loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_sdk.errors import ProtocolError, ReleaseError
from edge_sdk.protocol.messages import BlobRef, Release, ReleaseFile, decode_message
from edge_sdk.protocol.part_file import fsync_directory, sha256_of_file, write_durably
from edge_sdk.protocol.signing import open_sealed

SlotName = Literal["A", "B"]
Precision = Literal["int8", "fp32"]


@dataclass(frozen=True)
class Slot:
    """One installed model: `model.onnx`, `reference.safetensors` and the signed release."""

    directory: Path
    precision: Precision
    release: Release

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.directory / "model.onnx"

    @property
    def reference_path(self) -> Path:
        """Reference images and outputs."""
        return self.directory / "reference.safetensors"

    @property
    def model_blob(self) -> BlobRef:
        """What the release says of the ONNX file."""
        return release_file(self.release, self.precision).blob

    @property
    def max_abs_diff(self) -> float:
        """How far outputs may be from the reference's."""
        return release_file(self.release, self.precision).max_abs_diff


def release_file(release: Release, precision: Precision) -> ReleaseFile:
    """Return the release's file of one precision."""
    return release.int8 if precision == "int8" else release.fp32


def slot_directory(state: Path, name: SlotName) -> Path:
    """Return the directory of slot A or B."""
    return state / "slots" / name


def other(name: SlotName | None) -> SlotName:
    """Return the slot to install into while `name` is active."""
    return "B" if name == "A" else "A"


def fill_slot(
    directory: Path, *, envelope: bytes, precision: Precision, model: Path, reference: Path
) -> None:
    """Replace a slot's content durably; the release's envelope goes in last and completes it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_durably(directory / "model.onnx", model.read_bytes())
    write_durably(directory / "reference.safetensors", reference.read_bytes())
    write_durably(directory / "slot.json", json.dumps({"precision": precision}).encode())
    write_durably(directory / "release.signed", envelope)
    fsync_directory(directory.parent)


def open_slot(directory: Path, key: Ed25519PublicKey) -> Slot:
    """Return a slot after checking signature and hashes anew; raises `ReleaseError` saying what."""
    try:
        payload = open_sealed((directory / "release.signed").read_bytes(), key)
        release = decode_message(payload, (Release,))
        precision = json.loads((directory / "slot.json").read_bytes())["precision"]
    except (OSError, ProtocolError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{directory} holds no valid release: {error}") from error
    if not isinstance(release, Release) or precision not in ("int8", "fp32"):
        raise ReleaseError(f"{directory} holds no valid release")
    slot = Slot(directory, precision, release)
    for path, blob in (
        (slot.model_path, slot.model_blob),
        (slot.reference_path, release.reference),
    ):
        if not path.exists() or sha256_of_file(path) != blob.sha256:
            raise ReleaseError(f"{path} is not the file that was released: its sha256 differs")
    return slot


def envelope_sha256(envelope: bytes) -> str:
    """Return the identity of a signed release."""
    return hashlib.sha256(envelope).hexdigest()
