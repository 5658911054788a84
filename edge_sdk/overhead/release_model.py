"""The model that the foreground loop runs and the trajsyn arm installs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.errors import ReleaseError
from edge_sdk.overhead.onnx_model import onnx_bytes
from edge_sdk.protocol.tensors import pack
from models import ModelSpec

Float32 = npt.NDArray[np.float32]

REFERENCE_IMAGES = 16


@dataclass(frozen=True)
class InstalledRelease:
    """A release that this device has: its model and reference files, for the trajsyn arm."""

    model: bytes
    reference: bytes
    precision: str
    max_abs_diff: float
    name: str
    spec: ModelSpec


def inference_model(
    spec: ModelSpec, weights: Float32, installed: InstalledRelease | None
) -> tuple[str, bytes, bytes]:
    """Return where the inference model is from, its bytes and its reference file."""
    if installed is not None:
        source = f"the release {installed.name} installed here, {installed.precision}"
        return source, installed.model, installed.reference
    data = onnx_bytes(spec, weights)
    images = np.random.default_rng(1).random(
        (REFERENCE_IMAGES, spec.channels, spec.image_size, spec.image_size), dtype=np.float32
    )
    logits = _run_onnx(data, images)
    reference = pack({"images": images, "logits_fp32": logits, "logits_int8": logits})
    return "the network itself with seeded weights, fp32 ONNX", data, reference


def _run_onnx(data: bytes, images: Float32) -> Float32:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (name,) = [i.name for i in session.get_inputs()]
    (logits,) = session.run(None, {name: images})
    return np.asarray(logits, np.float32)


def installed_release(config: LoadedConfig) -> InstalledRelease | None:
    """Return the release that runs on this device, None if there is none; `ReleaseError` if bad."""
    from edge_sdk.inference import InstalledModel, active_slot

    if active_slot(config) is None:
        return None
    installed = InstalledModel.open(config)
    slot = installed.slot
    model = slot.model_path.read_bytes()
    if hashlib.sha256(model).hexdigest() != slot.model_blob.sha256:
        raise ReleaseError(f"{slot.model_path} changed while it was read")
    return InstalledRelease(
        model=model,
        reference=slot.reference_path.read_bytes(),
        precision=slot.precision,
        max_abs_diff=slot.max_abs_diff,
        name=f"{slot.release.name} version {slot.release.version}",
        spec=installed.spec,
    )
