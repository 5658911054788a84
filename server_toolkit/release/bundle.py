"""A release: both ONNX files, reference outputs and the signed manifest that binds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.protocol.messages import (
    BlobRef,
    Release,
    ReleaseFile,
    ReleaseHealth,
    encode_message,
)
from edge_sdk.protocol.part_file import write_durably
from edge_sdk.protocol.signing import seal
from edge_sdk.protocol.tensors import pack
from models import ModelSpec
from models.layout import Flat
from models.networks import build_model, load_flat
from server_toolkit.errors import GateError
from server_toolkit.release.onnx_export import export_onnx, parity
from server_toolkit.release.onnx_model import Images, Logits, OnnxModel, pick_evenly
from server_toolkit.release.quantize import quantize_onnx

FP32_FILE = "model_fp32.onnx"
INT8_FILE = "model_int8.onnx"
REFERENCE_FILE = "reference.safetensors"
MANIFEST_FILE = "manifest.sealed"

MAX_REFERENCE_IMAGES = 16
# A device's outputs may differ from the reference by these shares of the largest logit.
# fp32: kernels of another processor add in another order. Two sets of kernels on one machine
# differ by 4e-7 at most, so 1e-3 leaves room and still finds a wrong model.
# int8: where such a difference meets a rounding edge, an activation moves by one of its 256 steps.
# Two sets of kernels differ by 2e-3 at most, int8 and fp32 by 1.2e-2; 2e-2 is for wrong arithmetic,
# a swapped file is found by its hash. (ConvNet of width 32 and 128, before and after hardening.)
FP32_TOLERANCE = 1e-3
INT8_TOLERANCE = 2e-2


@dataclass(frozen=True, kw_only=True)
class OnnxPair:
    """One network as fp32 and int8 ONNX files; `max_abs_diff` is |torch − fp32 ONNX|."""

    fp32: bytes
    int8: bytes
    max_abs_diff: float


@dataclass(frozen=True, kw_only=True)
class ReleaseBundle:
    """The manifest, its signed envelope and the files it names, by file name."""

    manifest: Release
    envelope: bytes
    files: Mapping[str, bytes]

    @cached_property
    def blobs(self) -> tuple[BlobRef, ...]:
        """References of the files, as the manifest has them."""
        return tuple(_blob(data) for data in self.files.values())

    def write(self, directory: Path) -> None:
        """Write the files and last the manifest, so that a directory with one is complete."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in {**self.files, MANIFEST_FILE: self.envelope}.items():
            write_durably(directory / name, data)


def export_pair(spec: ModelSpec, weights: Flat, calibration: Images) -> OnnxPair:
    """Export flat `weights` to ONNX, fp32 and int8; the same input gives the same bytes.

    `calibration` `(N, C, H, W) float32 in [0, 1]`. Raises `GateError` if the fp32 file computes
    something else than torch.
    """
    model = build_model(spec, seed=0)
    load_flat(model, weights)
    fp32 = export_onnx(model)
    max_abs_diff = parity(model, fp32, calibration)
    return OnnxPair(fp32=fp32, int8=quantize_onnx(fp32, calibration), max_abs_diff=max_abs_diff)


def build_release(
    pair: OnnxPair,
    *,
    spec: ModelSpec,
    name: str,
    version: int,
    created_at_s: float,
    expires_at_s: float,
    reference_images: Images,
    health: ReleaseHealth,
    metrics: Mapping[str, float],
    key: Ed25519PrivateKey,
) -> ReleaseBundle:
    """Bind both ONNX files, reference outputs and `metrics` in one signed manifest.

    At most `MAX_REFERENCE_IMAGES` of `reference_images` `(N, C, H, W) float32 in [0, 1]` go to
    every device, so they must be proxy or random images. Raises `GateError` if another set of
    onnxruntime's kernels would not meet the tolerances with which devices compare.
    """
    images = pick_evenly(reference_images, MAX_REFERENCE_IMAGES)
    fp32, fp32_limit = _reference("fp32", pair.fp32, images, FP32_TOLERANCE)
    int8, int8_limit = _reference("int8", pair.int8, images, INT8_TOLERANCE)
    reference = pack({"images": images, "logits_fp32": fp32, "logits_int8": int8})
    manifest = Release(
        name=name,
        version=version,
        created_at_s=created_at_s,
        expires_at_s=expires_at_s,
        model=spec.to_dict(),
        fp32=ReleaseFile(blob=_blob(pair.fp32), max_abs_diff=fp32_limit),
        int8=ReleaseFile(blob=_blob(pair.int8), max_abs_diff=int8_limit),
        reference=_blob(reference),
        health=health,
        metrics={
            **metrics,
            "onnx_max_abs_diff": pair.max_abs_diff,
            "int8_max_abs_diff": float(np.abs(int8 - fp32).max()),
        },
    )
    return ReleaseBundle(
        manifest=manifest,
        envelope=seal(encode_message(manifest), key),
        files={FP32_FILE: pair.fp32, INT8_FILE: pair.int8, REFERENCE_FILE: reference},
    )


def _reference(
    precision: str, data: bytes, images: Images, tolerance: float
) -> tuple[Logits, float]:
    """Return the outputs that devices compare with, and how far they may be off."""
    logits = OnnxModel(data).logits(images)
    limit = tolerance * max(1.0, float(np.abs(logits).max()))
    other = float(np.abs(OnnxModel(data, optimized=False).logits(images) - logits).max())
    if not other <= limit:
        raise GateError(
            f"the {precision} model's outputs change by {other:.3g} with onnxruntime's kernels, "
            f"and devices accept {limit:.3g}; they would refuse this release"
        )
    return logits, limit


def _blob(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
