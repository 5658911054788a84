"""Training with an exported program beside training in float64: gradients, and where it leads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import nn

from edge_sdk.export import reference
from edge_sdk.export.blocks import Block
from edge_sdk.export.gate import TOLERANCE, shapes
from edge_sdk.export.lowering import lower
from edge_sdk.export.reference import Float32, Float64, Layers
from edge_sdk.export.steps import TrainingStep
from edge_sdk.runtime import Form, Program, instruction_sets, set_instruction_set
from edge_sdk.training.sgd import SGD
from models.layers import Shape

STEPS = 20
COMPARED_AFTER = (0, 1, STEPS)  # steps
MOMENTUM = 0.9
DIVERGED = 0.1  # a drift of torch's float32 from which on training says nothing about the program

Batch = tuple[Float32, Float32]  # images (B, C, H, W), label rows (B, classes)


@dataclass(frozen=True)
class GradientErrors:
    """Relative errors of loss, logits and every gradient at the weights after some steps."""

    after_steps: int
    errors: dict[str, float]

    @property
    def worst(self) -> str:
        """The name of the largest error; a NaN is the largest of all."""
        return max(self.errors, key=lambda n: np.nan_to_num(self.errors[n], nan=np.inf))


@dataclass(frozen=True)
class InstructionSetCheck:
    """What one of the processor's instruction sets gave; `drift` as in `TrainingCheck`."""

    instruction_set: str
    gradients: tuple[GradientErrors, ...]
    drift: float


@dataclass(frozen=True)
class TrainingCheck:
    """How a program trains.

    A drift is the distance of the weights after `STEPS` steps from those of float64 training from
    the same start with the same batches, over the way that float64 training went.
    `float32_drift` is what torch's float32 training drifts. Drifts are told, not judged: where
    training is chaotic, one activation at a ReLU's kink sends right gradients elsewhere. Where
    `float32_drift` is over `DIVERGED`, or NaN, only the gradients of the first two steps count.
    """

    learning_rate: float
    float32_drift: float
    sets: tuple[InstructionSetCheck, ...]
    failures: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        diverged = not self.float32_drift <= DIVERGED
        found = []
        for each in self.sets:
            for compared in each.gradients:
                if diverged and compared.after_steps > 1:
                    continue
                error = compared.errors[compared.worst]
                if not error <= TOLERANCE:
                    found.append(
                        f"{each.instruction_set}: after {compared.after_steps} steps "
                        f"{compared.worst} is off by {error:.1e} (tolerance {TOLERANCE:.0e})"
                    )
        object.__setattr__(self, "failures", tuple(found))


def check_training(
    layers: Layers,
    blocks: Sequence[Block],
    shape: Shape,
    classes: int,
    *,
    batch: int = 4,
    learning_rate: float = 0.01,
) -> TrainingCheck:
    """Export the blocks of `layers` and train with them in every instruction set of this machine.

    SGD with momentum from the layers' weights on drawn images of `shape` (channels, height,
    width); the layers stay as they are. Takes seconds to minutes.
    """
    batches = _batches(shape, classes, batch)
    names = [name for block in blocks for name in block.forms]
    forms = {name: form for block in blocks for name, form in block.forms.items()}
    channels, height, width = shape
    inputs = (torch.zeros(batch, height, width, channels), torch.zeros(batch, classes))
    weights = tuple(torch.zeros(forms[name].shape) for name in names)
    program = Program.load(lower(TrainingStep(blocks, names), (*inputs, *weights)))
    start = _weights(layers)
    exact = _torch_training(layers, torch.float64, batches, learning_rate)
    way = _distance(exact, start)
    plain = _torch_training(layers, torch.float32, batches, learning_rate)
    best = instruction_sets()[0]
    found = []
    try:
        for instruction_set in instruction_sets():
            set_instruction_set(instruction_set)
            device = _Device(program, layers, forms, learning_rate)
            gradients = tuple(_device_training(device, batches))
            drift = _distance(device.weights(), exact) / way
            found.append(InstructionSetCheck(instruction_set, gradients, drift))
    finally:
        set_instruction_set(best)
        program.close()
    return TrainingCheck(learning_rate, _distance(plain, exact) / way, tuple(found))


class _Device:
    """Weights in the program's forms, and a step as a device takes it."""

    def __init__(
        self, program: Program, layers: Layers, forms: dict[str, Form], learning_rate: float
    ) -> None:
        self.program, self.forms = program, forms
        self.layers = reference.copied(layers, torch.float64)
        self.start = _weights(layers)
        self.arrays = {
            name: np.ascontiguousarray(form.to_program(self.start[name].astype(np.float32)))
            for name, form in forms.items()
        }
        self.optimiser = SGD(
            list(self.arrays.values()), learning_rate=learning_rate, momentum=MOMENTUM
        )
        self.outputs = [cast(Float32, info.empty()) for info in program.outputs]

    def run(self, batch: Batch) -> None:
        images, labels = batch
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self.program.execute([pixels, labels, *self.arrays.values()], self.outputs)

    def weights(self) -> dict[str, Float64]:
        """Return all weights in torch's shapes; those that the program does not take stay."""
        return self.start | self._in_torch(list(self.arrays.values()))

    def _in_torch(self, arrays: Sequence[Float32]) -> dict[str, Float64]:
        return {
            name: form.from_program(array, self.start[name].shape).astype(np.float64)
            for (name, form), array in zip(self.forms.items(), arrays, strict=True)
        }

    def errors(self, batch: Batch) -> dict[str, float]:
        """Run and compare with float64 autograd at the same weights."""
        self.run(batch)
        parameters = reference.parameters_of(self.layers)
        with torch.no_grad():
            for name, value in self.weights().items():
                parameters[name].copy_(torch.from_numpy(value))
        truth = reference.run(self.layers, *batch)
        nothing = {name: np.zeros_like(value) for name, value in self.start.items()}
        found = nothing | self._in_torch(self.outputs[2:])
        return {
            "loss": abs(float(self.outputs[0][0]) - truth.loss) / abs(truth.loss),
            "logits": reference.norm(self.outputs[1] - truth.logits) / reference.norm(truth.logits),
        } | reference.gradient_errors(
            {name: value.astype(np.float32) for name, value in found.items()},
            self.layers,
            *batch,
            truth=truth,
            tolerance=TOLERANCE,
        )


def _device_training(device: _Device, batches: Sequence[Batch]) -> list[GradientErrors]:
    found = []
    for index, batch in enumerate(batches):
        if index in COMPARED_AFTER:
            found.append(GradientErrors(index, device.errors(batch)))
        device.run(batch)
        device.optimiser.step(device.outputs[2:], scale=1 / len(batch[0]))
        if index + 1 == STEPS:
            break
    found.append(GradientErrors(STEPS, device.errors(batches[STEPS])))
    return found


def _torch_training(
    layers: Layers, dtype: torch.dtype, batches: Sequence[Batch], learning_rate: float
) -> dict[str, Float64]:
    copies = reference.copied(layers, dtype)
    network = nn.Sequential(*(layer for _, layer in copies))
    optimiser = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=MOMENTUM)
    for images, labels in batches[:STEPS]:
        optimiser.zero_grad()
        logits = network(torch.from_numpy(images).to(dtype))
        rows = torch.from_numpy(labels).to(dtype)
        torch.autograd.backward(-(rows * logits.log_softmax(dim=1)).sum(dim=1).mean())
        optimiser.step()
    return _weights(copies)


def _weights(layers: Layers) -> dict[str, Float64]:
    parameters = reference.parameters_of(layers)
    return {name: p.detach().double().numpy().copy() for name, p in parameters.items()}


def _distance(a: dict[str, Float64], b: dict[str, Float64]) -> float:
    return float(np.sqrt(sum(np.sum((a[name] - b[name]) ** 2) for name in a)))


def _batches(shape: Shape, classes: int, batch: int) -> list[Batch]:
    """Return noise and drawn shapes in turn, each with random labels; one more than `STEPS`."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(STEPS + 1):
        size = (batch, *shape)
        images = shapes(rng, size) if index % 2 else rng.random(size, dtype=np.float32)
        labels = np.eye(classes, dtype=np.float32)[rng.integers(classes, size=batch)]
        found.append((images, labels))
    return found
