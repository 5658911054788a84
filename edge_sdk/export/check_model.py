"""Say layer by layer whether a network can be trained on devices, and what would make it so."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from edge_sdk.export.blocks import ActivationBlock, Block
from edge_sdk.export.chain import blocks_and_layers
from edge_sdk.export.operators import AVERAGE_POOL, MAX_POOL
from edge_sdk.export.supported import Verdict, judge
from edge_sdk.export.trace import TracedLayer, trace
from edge_sdk.export.training_check import TrainingCheck, check_training
from models import ModelSpec, SpecError
from models.layers import Layer, Linear, Shape, shape_after
from models.networks import Normalize, build_model


@dataclass(frozen=True)
class LayerReport:
    """One layer; `block` says what it becomes, `flop` counts its forward pass for one image."""

    name: str
    layer: str
    block: str
    output: Shape
    parameters: int
    flop: int
    problem: str
    advice: str


@dataclass(frozen=True)
class ModelCheck:
    """What was found about a network.

    `description` is a chain of the network's layers, every unsupported one replaced; None where
    that cannot be, for the reason in `no_description`. `training` is that of the network itself if
    it is supported, else of the description's.
    """

    layers: tuple[LayerReport, ...]
    supported: bool
    description: ModelSpec | None
    no_description: str
    training: TrainingCheck | None


def check_spec(spec: ModelSpec, *, batch: int = 4, learning_rate: float = 0.01) -> ModelCheck:
    """Check the network of a description; errors as `check_module`."""
    shape = (spec.channels, spec.image_size, spec.image_size)
    model = build_model(spec, seed=0)
    return check_module(model, shape, batch=batch, learning_rate=learning_rate)


def check_module(
    model: nn.Module, shape: Shape, *, batch: int = 4, learning_rate: float = 0.01
) -> ModelCheck:
    """Check a torch module that takes images of `shape` (channels, height, width).

    Its gradients and 20 steps of training are compared with float64 if all is supported, else
    those of the replacement with fresh weights. Raises `ConfigError` for a module that does not
    take such images or cannot be followed, `RuntimeLibraryError` where the runtime is not built.
    """
    steps = trace(model, shape)
    verdicts = [_verdict(step, last=step is steps[-1], first=step is steps[0]) for step in steps]
    supported = not any(verdict.problem for verdict in verdicts)
    description, reason = None, ""
    try:
        description = described(steps, shape)
    except SpecError as error:
        reason = str(error)
    blocks: list[tuple[Block, list[str]]] = []
    training = None
    if supported:
        layers = [(step.name, step.layer) for step in steps if step.layer is not None]
        blocks = blocks_and_layers(layers, shape)
        training = check_training(
            layers,
            [block for block, _ in blocks],
            shape,
            steps[-1].behind[0],
            batch=batch,
            learning_rate=learning_rate,
        )
    elif description is not None:
        training = check_spec(description, batch=batch, learning_rate=learning_rate).training
    reports = _reports(steps, verdicts, blocks)
    return ModelCheck(tuple(reports), supported, description, reason, training)


def described(steps: Sequence[TracedLayer], shape: Shape) -> ModelSpec:
    """Return the description of the steps' network, unsupported layers replaced.

    Raises `SpecError` saying why there is none.
    """
    channels, height, width = shape
    if height != width:
        raise SpecError("a description is of square images")
    mean, std = (0.0,) * channels, (1.0,) * channels
    layers: list[Layer] = []
    for index, step in enumerate(steps):
        if isinstance(step.layer, Normalize) and index == 0:
            mean = tuple(step.layer.mean.flatten().tolist())
            std = tuple(step.layer.std.flatten().tolist())
            continue
        if step.layer is None or step.problem:
            raise SpecError(f"{step.name} has no replacement: {step.problem}")
        verdict = judge(step.layer, shape, first=index == 0)
        if verdict.layers is None:
            raise SpecError(f"{step.name} has no replacement: {verdict.problem}")
        for layer in verdict.layers:
            shape = shape_after(layer, shape)
        layers += verdict.layers
        if isinstance(step.layer, nn.Flatten):
            shape = (math.prod(shape),)
    if len(shape) != 1:
        raise SpecError("it does not end with a number for each class")
    if layers and isinstance(layers[-1], Linear):
        layers.pop()
    return ModelSpec(
        architecture="chain",
        channels=channels,
        image_size=height,
        classes=shape[0],
        mean=mean,
        std=std,
        layers=tuple(layers),
    )


def _verdict(step: TracedLayer, *, first: bool, last: bool) -> Verdict:
    if step.layer is None or step.problem:
        return Verdict(step.problem, None, "a chain has one path, and each layer its own weights")
    verdict = judge(step.layer, step.before, first=first)
    if not last or verdict.problem:
        return verdict
    if not isinstance(step.layer, nn.Linear):
        classes = step.behind[0]
        return Verdict(
            "the last layer must be Linear",
            verdict.layers,
            f"end with Linear({classes}, {classes})",
        )
    if step.layer.bias is None:
        return dataclasses.replace(verdict, advice="a description has a bias here")
    return verdict


def _reports(
    steps: Sequence[TracedLayer],
    verdicts: Sequence[Verdict],
    blocks: Sequence[tuple[Block, list[str]]],
) -> list[LayerReport]:
    texts = {
        name: f"{index} {_text(block)}"
        for index, (block, names) in enumerate(blocks, start=1)
        for name in names
    }
    return [
        LayerReport(
            name=step.name,
            layer=step.text,
            block=texts.get(step.name, ""),
            output=step.behind,
            parameters=sum(p.numel() for p in step.layer.parameters()) if step.layer else 0,
            flop=_flop(step),
            problem=verdict.problem,
            advice=verdict.advice,
        )
        for step, verdict in zip(steps, verdicts, strict=True)
    ]


def _text(block: Block) -> str:
    if not isinstance(block, ActivationBlock):
        return type(block).__name__.removesuffix("Block")
    parts = ["norm"] * (block.norm is not None) + ["ReLU"] * block.relu
    parts += ["average pool"] * (block.pool == AVERAGE_POOL)
    parts += ["max pool"] * (block.pool == MAX_POOL)
    return ", ".join(parts)


def _flop(step: TracedLayer) -> int:
    """Return multiplications and additions of the layer's products, for one image."""
    if isinstance(step.layer, nn.Conv2d):
        return 2 * step.layer.weight[0].numel() * math.prod(step.behind)
    return 2 * step.layer.weight.numel() if isinstance(step.layer, nn.Linear) else 0
