"""Make the programs that devices run: a training step, an attack step, and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from edge_sdk.export.blocks import Block, Int8ConvolutionBlock
from edge_sdk.export.blocks import quantized as blocks_with_int8
from edge_sdk.export.chain import blocks_of
from edge_sdk.export.gate import check
from edge_sdk.export.lowering import lower
from edge_sdk.export.steps import AttackStep, Evaluation, TrainingStep, ranges_of
from edge_sdk.runtime import GateResult, ProgramFile, ProgramParameter
from edge_sdk.runtime.program_file import Kind
from models import ModelSpec, layout_of
from models.networks import build_model

_STEPS: Mapping[Kind, Callable[[Sequence[Block], Sequence[str]], nn.Module]] = {
    "training": TrainingStep,
    "attack": AttackStep,
    "evaluation": Evaluation,
}
_UNCHECKED = GateResult(max_relative_error=0.0, tolerance=0.0, worst="")


def training_program(
    spec: ModelSpec, *, micro_batch: int = 4, quantized: bool = False, int8_arithmetic: bool = False
) -> ProgramFile:
    """Return the program of one training step on `micro_batch` images; takes seconds.

    With `quantized` the step simulates int8 weights and activations (`blocks.QuantizedBlock`), with
    `int8_arithmetic` large convolutions multiply in int8 too (`blocks.Int8ConvolutionBlock`).
    Raises `UnsupportedLayerError` for a layer without a block, `GradientGateError` for gradients
    that differ from float64 autograd, `RuntimeLibraryError` where the runtime is not built.
    """
    blocks = blocks_of(build_model(spec))
    if quantized or int8_arithmetic:
        blocks = blocks_with_int8(blocks, int8_arithmetic=int8_arithmetic)
    return check(export("training", spec, blocks, micro_batch))


def attack_program(spec: ModelSpec, *, micro_batch: int = 4) -> ProgramFile:
    """Return the program that gives the loss gradient of `micro_batch` images, for PGD.

    Errors as `training_program`.
    """
    return check(export("attack", spec, blocks_of(build_model(spec)), micro_batch))


def evaluation_program(spec: ModelSpec, *, batch: int = 4) -> ProgramFile:
    """Return the program that gives the logits of `batch` images; errors as `training_program`."""
    return check(export("evaluation", spec, blocks_of(build_model(spec)), batch))


def export(kind: Kind, spec: ModelSpec, blocks: Sequence[Block], batch: int) -> ProgramFile:
    """Return the program of these blocks before it has passed the gate."""
    forms = {name: form for block in blocks for name, form in block.forms.items()}
    parameters = tuple(
        ProgramParameter(p.name, p.shape, forms.get(p.name)) for p in layout_of(spec).parameters
    )
    taken = [p for p in parameters if p.form is not None]
    images = torch.zeros(batch, spec.image_size, spec.image_size, spec.channels)
    rows = (torch.zeros(batch, spec.classes),) if kind != "evaluation" else ()
    step = _STEPS[kind](blocks, [p.name for p in taken])
    ranges = ranges_of(blocks)
    inputs = [*(p.program_shape for p in taken), *((2,) for _ in ranges)]
    pte = lower(step, (images, *rows, *(torch.zeros(shape) for shape in inputs)))
    return ProgramFile(
        kind=kind,
        spec=spec,
        micro_batch=batch,
        gate=_UNCHECKED,
        parameters=parameters,
        ranges=tuple(ranges),
        int8_arithmetic=any(isinstance(block, Int8ConvolutionBlock) for block in blocks),
        pte=pte,
    )
