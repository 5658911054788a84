"""Make inference programs: a network with its weights inside, in fp32 or int8."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.errors import ConfigError, InferenceGateError
from edge_sdk.export.inference_stages import Chain, stages_of
from edge_sdk.export.int8_stages import quantize
from edge_sdk.export.xnnpack import lower_to_xnnpack
from edge_sdk.runtime import GateResult, InferenceResult, ProgramFile, ProgramParameter
from edge_sdk.runtime.classifier import Classifier
from edge_sdk.runtime.program_file import Precision
from models import ModelSpec
from models.layout import Flat
from models.networks import Network, build_model, load_flat

MAX_CALIBRATION_IMAGES = 512
MIN_CALIBRATION_IMAGES = 8
CHECKED = 4  # one image in so many is kept from calibration, for the gate
FP32_TOLERANCE = 1e-4
# Rounding to int8 moves the logits by about a hundredth. This is for ranges that do not fit and
# for wrong arithmetic; what int8 costs in accuracy can only be measured with labels.
INT8_TOLERANCE = 0.1
# The share of images that may change class although the network prefers its own by more than the
# tolerance. Nearer ones are undecided: rounding may tip them, and does.
MAX_CHANGED = 0.02

Images = npt.NDArray[np.float32]


def inference_program(
    spec: ModelSpec,
    weights: Flat,
    *,
    batch: int = 4,
    precision: Precision = "fp32",
    calibration: Images | None = None,
) -> ProgramFile:
    """Return the program that gives the logits of `batch` images; takes 3-10 s.

    `weights` is the flat vector of `spec`'s layout. int8 needs `calibration`
    `(N, C, H, W) float32 in [0, 1]`, 8 images or more, from which the ranges of the activations
    are taken; at most 512, evenly picked, are used. Raises `UnsupportedLayerError` for a layer
    that XNNPACK cannot run, `ConfigError` for weights or images that do not fit,
    `InferenceGateError` where the program's logits are too far from the network's.
    """
    network = build_model(spec)
    try:
        load_flat(network, np.ascontiguousarray(weights))
    except ValueError as error:
        raise ConfigError(f"weights: {error}") from error
    if not np.isfinite(weights).all():
        raise ConfigError("weights: they hold NaN or infinity")
    return export_inference(network, batch=batch, precision=precision, calibration=calibration)


def export_inference(
    network: Network, *, batch: int, precision: Precision, calibration: Images | None
) -> ProgramFile:
    """Return the checked program of a network; as `inference_program`."""
    network, spec = network.eval(), network.spec
    stages = stages_of(network)
    seen, checked = 0, _check_images(spec)
    if precision == "int8":
        images = _calibration_images(spec, calibration)
        kept = np.arange(len(images)) % CHECKED == CHECKED - 1
        with torch.no_grad():
            stages = quantize(stages, torch.from_numpy(images[~kept]))
        seen, checked = int((~kept).sum()), images[kept]
    shape = (batch, spec.image_size, spec.image_size, spec.channels)
    pte = lower_to_xnnpack(Chain(stages), torch.zeros(shape))
    file = ProgramFile(
        kind="inference",
        spec=spec,
        micro_batch=batch,
        gate=GateResult(max_relative_error=0.0, tolerance=0.0, worst="logits"),
        parameters=tuple(
            ProgramParameter(n, tuple(p.shape), None) for n, p in network.named_parameters()
        ),
        pte=pte,
        inference=InferenceResult(
            precision=precision, calibration_images=seen, checked_images=0, agreement=0.0
        ),
    )
    return check_inference(file, network, checked)


def check_inference(file: ProgramFile, network: Network, images: Images) -> ProgramFile:
    """Return `file` with what was measured on `images` `(N, C, H, W)`, in the device's runtime.

    Raises `InferenceGateError` unless the logits are within the tolerance of the float64
    network's, as a fraction of their norm, and no more than `MAX_CHANGED` of the decided classes
    have changed.
    """
    assert file.inference is not None
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(torch.from_numpy(images).double()).numpy()
    with Classifier(file) as classifier:
        found = classifier.predict(images).astype(np.float64)
    error = float(np.linalg.norm(found - exact) / max(float(np.linalg.norm(exact)), 1e-30))
    is_int8 = file.inference.precision == "int8"
    tolerance = INT8_TOLERANCE if is_int8 else FP32_TOLERANCE
    classes = found.argmax(axis=1)
    lost = exact.max(axis=1) - np.take_along_axis(exact, classes[:, None], axis=1)[:, 0]
    agreement = float(np.mean(lost == 0))
    changed = float(np.mean(lost > tolerance * np.sqrt(np.mean(exact**2))))
    if not (error <= tolerance and changed <= MAX_CHANGED):  # NaN is refused too
        raise InferenceGateError(
            f"the {file.inference.precision} program's logits are off by {error:.1e} of their "
            f"norm (tolerance {tolerance:.0e}) and {changed:.1%} of {len(images)} images change "
            f"class (at most {MAX_CHANGED:.0%}); it is refused"
            + (". Calibrate with images like those it will see" if is_int8 else "")
        )
    return dataclasses.replace(
        file,
        gate=GateResult(max_relative_error=error, tolerance=tolerance, worst="logits"),
        inference=dataclasses.replace(
            file.inference, checked_images=len(images), agreement=agreement
        ),
    )


def _calibration_images(spec: ModelSpec, images: Images | None) -> Images:
    if images is None:
        raise ConfigError("int8 needs calibration images")
    shape = (spec.channels, spec.image_size, spec.image_size)
    if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.float32:
        raise ConfigError(
            f"calibration images are {images.shape} {images.dtype}; expected (N, {shape}) float32"
        )
    if len(images) < MIN_CALIBRATION_IMAGES:
        raise ConfigError(
            f"{len(images)} calibration images; {MIN_CALIBRATION_IMAGES} or more are needed"
        )
    if not (images.min() >= 0 and images.max() <= 1):  # NaN is refused too
        raise ConfigError("calibration images: every pixel must be in [0, 1]")
    count = min(len(images), MAX_CALIBRATION_IMAGES)
    picked = np.linspace(0, len(images) - 1, count).round().astype(int)
    return np.ascontiguousarray(images[picked])


def _check_images(spec: ModelSpec) -> Images:
    """Return noise, and the flat images that leave an instance norm nothing to divide by."""
    rng = np.random.default_rng(0)
    images = rng.random((16, spec.channels, spec.image_size, spec.image_size), np.float32)
    images[0], images[1] = 0, 1
    return images
