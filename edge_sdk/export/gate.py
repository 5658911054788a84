"""The export gate: a program's results against float64 autograd of the network itself.

Hand-written backward passes and a delegate's kernels can both be wrong without failing, so no
program leaves without being run by the device's own runtime on random and on realistic inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import cast

import numpy as np
import torch

from edge_sdk.errors import GradientGateError
from edge_sdk.export import reference
from edge_sdk.export.reference import Float32, Float64
from edge_sdk.export.rounded_layers import round_layers
from edge_sdk.runtime import GateResult, Program, ProgramFile
from models import ModelSpec
from models.networks import Network, build_model, flat_parameters, load_flat

TOLERANCE = 1e-4
# Where float32 and float64 fall to different sides of a rounding boundary, an activation differs by
# a whole step, and may win a max pool: 5e-2 was seen in AlexNet, 1e-3 without max pools. In noise
# few do; in large areas of one colour all do together, so noise is the test.
ROUNDED_TOLERANCE = 0.1
# Stochastic rounding of gradients to int8 is noise of a percent or two a layer.
INT8_TOLERANCE = 0.1
# Far enough to leave the initialisation, not so far that the loss, and all gradients, vanish.
TRAINED_STEPS, STEP_LENGTH = 5, 0.05


@dataclass(frozen=True)
class _Case:
    """Flat weights, images `(B, C, H, W)` and label rows `(B, classes)`."""

    flat: Float32
    images: Float32
    labels: Float32
    ranges: Sequence[Float32] = ()  # of quantized layers; none: empty ranges


def check(file: ProgramFile, *, tolerance: float = TOLERANCE) -> ProgramFile:
    """Return `file` with what was measured; raises `GradientGateError` naming the worst tensor.

    `reference.gradient_errors` says what an error is, and what is taken off that float32 cannot
    decide. The same holds for an attack program's gradient of the images; of an evaluation program
    the logits are compared. A quantized program is held to it while its ranges are empty, and to
    `ROUNDED_TOLERANCE` with the ranges that it observes in noise. One with int8 arithmetic is held
    to `INT8_TOLERANCE` in noise.
    """
    program = file.load_program()
    try:
        if file.int8_arithmetic:
            tolerance = INT8_TOLERANCE
            errors = _errors_in_int8(file, program, tolerance)
        else:
            errors = _errors_in_float(file, program, tolerance)
        if file.kind != "evaluation":
            errors |= _padding_errors(file, program)
    finally:
        program.close()
    worst = _require(errors, tolerance)
    return dataclasses.replace(file, gate=GateResult(errors[worst], tolerance, worst))


def _require(errors: dict[str, float], tolerance: float) -> str:
    """Return the name of the worst error; raises `GradientGateError` where it is too large."""
    # A NaN is the worst of all and compares false with everything.
    worst = max(errors, key=lambda n: np.nan_to_num(errors[n], nan=np.inf))
    if not errors[worst] <= tolerance:
        raise GradientGateError(
            f"{worst} is off by {errors[worst]:.1e} of its norm (tolerance {tolerance:.0e}); "
            "the program is refused. Its layer's block computes something else than the layer"
        )
    return worst


def _errors_in_float(file: ProgramFile, program: Program, tolerance: float) -> dict[str, float]:
    errors: dict[str, float] = {}
    for index, case in enumerate(_cases(file.spec, file.micro_batch)):
        found, observed = _errors(file, program, case, tolerance)
        for name, error in found.items():
            errors[name] = max(error, errors.get(name, 0.0))
        if file.ranges and index == 0:
            rounded = dataclasses.replace(case, ranges=observed)
            _require(_errors(file, program, rounded, ROUNDED_TOLERANCE)[0], ROUNDED_TOLERANCE)
    return errors


def _errors_in_int8(file: ProgramFile, program: Program, tolerance: float) -> dict[str, float]:
    noise = _cases(file.spec, file.micro_batch)[0]
    observed = _errors(file, program, noise, tolerance)[1]
    return _errors(file, program, dataclasses.replace(noise, ranges=observed), tolerance)[0]


def _cases(spec: ModelSpec, batch: int) -> list[_Case]:
    """Fresh weights on noise with soft labels, and slightly trained weights on drawn shapes."""
    rng = np.random.default_rng(0)
    shape = (batch, spec.channels, spec.image_size, spec.image_size)
    noise = rng.random(shape, dtype=np.float32)
    soft = rng.dirichlet(np.ones(spec.classes), batch).astype(np.float32)
    model = build_model(spec, seed=0)
    random = _Case(flat_parameters(model), noise, soft)

    drawn = shapes(rng, shape)
    hot = np.eye(spec.classes, dtype=np.float32)[rng.integers(spec.classes, size=batch)]
    trained = _trained(model.double(), drawn, hot)
    if batch > 1:
        hot[-1] = 0  # a padding row among real ones
    return [random, _Case(trained, drawn, hot)]


def shapes(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    """Bright blobs on black, as digits and many sensors give: large areas that are all equal."""
    batch, channels, height, width = shape
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform(0.2, 0.8, (2, batch, channels, 1, 1))
    distance = (y / height - centre[0]) ** 2 + (x / width - centre[1]) ** 2
    blobs: Float32 = np.clip(1.5 - 25 * distance, 0, 1).astype(np.float32)
    return blobs


def _trained(model: Network, images: Float32, labels: Float32) -> Float32:
    parameters = dict(model.named_parameters())
    for _ in range(TRAINED_STEPS):
        gradients = reference.run(model.layers(), images, labels).gradients
        length = np.sqrt(sum(np.sum(gradients[name] ** 2) for name in parameters))
        with torch.no_grad():
            for name, parameter in parameters.items():
                step = torch.from_numpy(gradients[name])
                parameter.sub_(step, alpha=float(STEP_LENGTH / length))
    return flat_parameters(model)


def _run(file: ProgramFile, program: Program, case: _Case) -> list[Float32]:
    weights = file.to_program(case.flat)
    inputs = [np.ascontiguousarray(case.images.transpose(0, 2, 3, 1))]
    if file.kind != "evaluation":
        inputs.append(case.labels)
    inputs += [w for w, taken in zip(weights, file.is_input, strict=True) if taken]
    inputs += case.ranges or [np.array([1, -1], np.float32) for _ in file.ranges]
    outputs = [cast(Float32, info.empty()) for info in program.outputs]
    program.execute(inputs, outputs)
    return outputs


def _errors(
    file: ProgramFile, program: Program, case: _Case, tolerance: float
) -> tuple[dict[str, float], list[Float32]]:
    """Return the errors by name, and the ranges that the program observed."""
    outputs = _run(file, program, case)
    observed = outputs[len(outputs) - len(file.ranges) :]
    ranges = [np.array([o[:, 0].min(), o[:, 1].max()], np.float32) for o in observed]
    outputs = outputs[: len(outputs) - len(file.ranges)]
    model = build_model(file.spec).double()
    load_flat(model, case.flat)
    round_layers(model, dict(zip_longest(file.ranges, case.ranges)))
    layers = model.layers()
    truth = reference.run(layers, case.images, case.labels)
    if file.kind == "evaluation":
        return {"logits": _relative(outputs[0], truth.logits)}, []
    errors = {
        "loss": _relative(outputs[0], np.array([truth.loss])),
        "logits": _relative(outputs[1], truth.logits),
    } | reference.gradient_errors(
        _gradients(file, outputs[2:]),
        layers,
        case.images,
        case.labels,
        truth=truth,
        tolerance=tolerance,
    )
    return errors, ranges


def _gradients(file: ProgramFile, outputs: list[Float32]) -> dict[str, Float32]:
    """Return what a training or an attack program gave, by name and in torch's shapes."""
    if file.kind == "attack":
        return {reference.IMAGES: outputs[0].transpose(0, 3, 1, 2)}
    found = iter(outputs)
    gradients = [
        next(found) if taken else np.zeros(p.program_shape, np.float32)
        for p, taken in zip(file.parameters, file.is_input, strict=True)
    ]
    return file.layout.split(file.from_program(gradients))


def _relative(found: Float32, truth: Float64) -> float:
    scale = reference.norm(truth)
    difference = reference.norm(found.astype(np.float64) - truth)
    return difference / scale if scale else difference


def _padding_errors(file: ProgramFile, program: Program) -> dict[str, float]:
    """Hold a micro-batch of padding alone to a loss and gradients of exactly zero."""
    case = _cases(file.spec, file.micro_batch)[0]
    outputs = _run(file, program, dataclasses.replace(case, labels=np.zeros_like(case.labels)))
    del outputs[len(outputs) - len(file.ranges) :]  # what it observed
    del outputs[1]  # logits
    return {} if not any(o.any() for o in outputs) else {"padding rows": float("inf")}
