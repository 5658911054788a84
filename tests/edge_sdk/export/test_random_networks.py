"""Gradients of networks that nobody chose: random chains of every supported layer."""

import random

import pytest

from edge_sdk.export import check_model
from edge_sdk.export.gate import TOLERANCE
from edge_sdk.runtime import ProgramFile
from models import ModelSpec, SpecError
from models.layers import AveragePool, Convolution, InstanceNorm, Linear, MaxPool, ReLU, shape_after

MAX_FLOP = 20_000_000  # of a forward pass for one image


def random_layer(draw, shape):
    """A layer with small sizes as likely as large ones."""
    kinds = ["relu", "linear"]
    if len(shape) == 3:
        kinds = ["conv"] * 4 + ["norm"] * 2 + ["relu"] * 3 + ["avgpool", "maxpool"]
        if max(shape[1:]) < 6:
            kinds += ["linear"]
    kind = draw.choice(kinds)
    if kind == "conv":
        outputs = draw.choice([1, 2, 3, 5, 8, 16, 17, 31, 33, 48, 65])
        kernel = draw.choice([1, 3, 3, 3, 5, 5, 7, 9, 11, 13, 15])
        return Convolution(outputs=outputs, kernel=kernel, bias=draw.random() < 0.7)
    if kind == "linear":
        return Linear(outputs=draw.choice([1, 4, 10, 37, 100]), bias=draw.random() < 0.7)
    if kind in ("avgpool", "maxpool"):
        pool = AveragePool if kind == "avgpool" else MaxPool
        return pool(size=draw.choice([2, 2, 2, 3, 4]))
    return InstanceNorm() if kind == "norm" else ReLU()


def random_spec(seed):
    """A chain of 1 to 14 layers on images of 4 to 33 pixels."""
    draw = random.Random(seed)
    while True:
        channels, side = draw.choice([1, 1, 2, 3, 3, 4]), draw.randint(4, 33)
        shape, layers = (channels, side, side), []
        for _ in range(draw.randint(1, 14)):
            layer = random_layer(draw, shape)
            try:
                shape = shape_after(layer, shape)
            except SpecError:
                continue
            layers.append(layer)
        spec = ModelSpec(
            architecture="chain",
            channels=channels,
            image_size=side,
            classes=draw.choice([2, 3, 10, 17, 100]),
            mean=tuple(draw.uniform(0, 0.6) for _ in range(channels)),
            std=tuple(draw.uniform(0.1, 1) for _ in range(channels)),
            layers=tuple(layers),
        )
        flop = 0
        for _, layer, before, behind in spec.shapes():
            if isinstance(layer, Convolution):
                flop += 2 * before[0] * layer.kernel**2 * behind[0] * behind[1] * behind[2]
        if flop <= MAX_FLOP:
            return spec, draw.choice([1, 2, 3, 4, 5])


def check(seed, training_program):
    spec, batch = random_spec(seed)
    file = training_program(spec, batch)
    assert 0 < file.gate.max_relative_error < TOLERANCE
    assert ProgramFile.from_bytes(file.to_bytes()) == file
    found = check_model.check_spec(spec, batch=batch)
    assert found.supported
    assert found.training.failures == ()


@pytest.mark.parametrize("seed", [0, 1, 33, 41])
def test_random_networks_train_as_in_float64(training_program, seed):
    check(seed, training_program)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_random_networks_train_as_in_float64(training_program, seed):
    check(seed, training_program)
