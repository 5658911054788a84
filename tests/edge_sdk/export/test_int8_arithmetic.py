"""The operators that multiply in int8, held to a float64 reference that rounds as they do."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from edge_sdk.export import blocks as b
from edge_sdk.export import training_program
from edge_sdk.export.lowering import lower
from edge_sdk.export.rounded_layers import round_activations, round_weight
from edge_sdk.runtime import (
    Program,
    ProgramFile,
    int8_instruction_sets,
    set_instruction_set,
    set_threads,
)
from edge_sdk.training import load_digits, train
from models import ModelSpec
from models.networks import build_model, flat_parameters

RANGE = (-2.0, 3.0)


class Alone(torch.nn.Module):
    """x, dy, range, weight and bias to y, dx, both parameters' gradients and what was observed."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, dy, found, *parameters):
        values = dict(zip(self.block.forms, parameters, strict=True)) | {self.block.range: found}
        y, saved = self.block.forward(x, values)
        dx, gradients = self.block.backward(dy, saved, values)
        return y, dx, *(gradients[n] for n in self.block.forms), self.block.observed(saved)


def made(batch, height, width, inputs, outputs, kernel):
    """Return the block, and random inputs for its program."""
    layer = b.ConvolutionBlock("l", inputs, outputs, kernel, bias=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, height, width, inputs, generator=generator) + 0.5
    # Output channels whose gradients differ by orders of magnitude, as they do.
    sizes = torch.logspace(0, -3, outputs)
    dy = torch.randn(batch, height, width, outputs, generator=generator) * sizes
    weight = torch.randn(kernel * kernel * inputs, outputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    return b.Int8ConvolutionBlock(layer), (x, dy, torch.tensor(RANGE), weight, bias)


def execute(program, inputs):
    outputs = [o.empty() for o in program.outputs]
    program.execute([i.numpy() for i in inputs], outputs)
    return outputs


def truth(block, inputs):
    """Return y, dx and dweight in float64 with the input and the weight rounded."""
    x, dy, _, weight, bias = inputs
    layer = block.layer
    form = layer.forms["l.weight"]
    w = weight.reshape(layer.kernel, layer.kernel, layer.inputs, layer.outputs)
    w = w.permute(3, 2, 0, 1).double().requires_grad_()
    pixels = x.permute(0, 3, 1, 2).double().requires_grad_()
    rounded = w + (round_weight(w.detach()) - w).detach()
    y = functional.conv2d(
        round_activations(pixels, np.float32(RANGE)),
        rounded,
        bias.double(),
        padding=layer.kernel // 2,
    )
    dx, dw = torch.autograd.grad(y, [pixels, w], dy.permute(0, 3, 1, 2).double())
    columns = dw.reshape(form.view).permute(form.axes).reshape(form.shape)
    return [t.detach().numpy() for t in (y.permute(0, 2, 3, 1), dx.permute(0, 2, 3, 1), columns)]


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


SHAPES = [
    (2, 8, 8, 16, 16, 3),
    (1, 7, 5, 20, 36, 3),  # sides and channels that fill neither groups nor panels
    (2, 5, 9, 16, 72, 5),
    (1, 3, 1, 16, 4, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_products_are_those_of_the_rounded_values(runtime, shape):
    """Forward exactly; backward up to the rounding of the gradient, whose step is max / 127."""
    block, inputs = made(*shape)
    y, dx, dweight = truth(block, inputs)
    program = Program.load(lower(Alone(block), inputs))
    for name in int8_instruction_sets():
        set_instruction_set(name)
        found = execute(program, inputs)
        assert relative(found[0], y) < 1e-6
        assert relative(found[1], dx) < 0.05
        # Each output channel has a step of its own, so the small ones are as good as the large.
        for column in range(shape[4]):
            assert relative(found[2][:, column], dweight[:, column]) < 0.05
        np.testing.assert_allclose(found[3], inputs[1].sum(dim=(0, 1, 2)), rtol=1e-4, atol=1e-5)
        lowest, highest = inputs[0].amin(dim=(1, 2, 3)), inputs[0].amax(dim=(1, 2, 3))
        np.testing.assert_array_equal(found[4], torch.stack([lowest, highest], dim=1))
    set_instruction_set(int8_instruction_sets()[0])


def test_stochastic_rounding_keeps_the_expectation(runtime):
    """A gradient of 0.3 steps everywhere: nearest rounding would lose all of it."""
    block, (x, dy, found, weight, bias) = made(4, 32, 32, 16, 16, 1)
    dy.fill_(0.3)
    dy[0, 0, 0] = 127.0
    program = Program.load(lower(Alone(block), (x, dy, found, weight, bias)))
    x.fill_(1.0)
    for name in int8_instruction_sets():
        set_instruction_set(name)
        dweight = execute(program, (x, dy, found, weight, bias))[2]
        one = round_activations(torch.ones(1), np.float32(RANGE)).item()
        expected = one * dy.sum(dim=(0, 1, 2)).numpy()
        # 4,095 draws of variance 0.21 step^2: a deviation of 29 in 1,356.
        np.testing.assert_allclose(dweight, np.tile(expected, (16, 1)), atol=5 * 29.4)
        assert np.std(dweight[0]) > 0  # channels draw apart
    set_instruction_set(int8_instruction_sets()[0])


def test_the_result_does_not_depend_on_threads(runtime):
    block, inputs = made(3, 9, 6, 16, 20, 3)
    program = Program.load(lower(Alone(block), inputs))
    try:
        results = []
        for threads in (1, 2, 5):
            set_threads(threads)
            results.append(execute(program, inputs))
    finally:
        set_threads(1)
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_all_instruction_sets_round_gradients_alike(runtime):
    block, inputs = made(2, 6, 7, 16, 24, 3)
    program = Program.load(lower(Alone(block), inputs))
    results = []
    for name in int8_instruction_sets():
        set_instruction_set(name)
        results.append(execute(program, inputs))
    set_instruction_set(int8_instruction_sets()[0])
    for other in results[1:]:
        np.testing.assert_allclose(other[1], results[0][1], rtol=1e-6)
        np.testing.assert_allclose(other[2], results[0][2], rtol=1e-6)


def test_a_gradient_of_zeros_or_infinity_does_no_harm(runtime):
    block, (x, dy, found, weight, bias) = made(2, 4, 4, 16, 16, 3)
    program = Program.load(lower(Alone(block), (x, dy, found, weight, bias)))
    for outputs in (execute(program, (x, dy * 0, found, weight, bias)),):
        assert not outputs[1].any()
        assert not outputs[2].any()
    dy[0, 0, 0, 0] = float("inf")
    execute(program, (x, dy, found, weight, bias))  # the loss tells; nothing may crash


def test_a_program_with_int8_arithmetic_passes_the_gate_and_trains(runtime):
    spec = ModelSpec(
        channels=1, image_size=16, classes=10, width=16, depth=2, mean=(0.5,), std=(0.25,)
    )
    file = training_program(spec, int8_arithmetic=True)
    assert file.int8_arithmetic
    assert len(file.ranges) == 3  # of both convolutions and the classifier
    assert 1e-4 < file.gate.max_relative_error < 0.1
    assert ProgramFile.from_bytes(file.to_bytes()) == file
    dataset = load_digits(16)
    start = flat_parameters(build_model(spec, seed=0))
    options = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "momentum": 0.9, "seed": 0}
    plain = training_program(spec)
    found = {f.int8_arithmetic: train(f, start, dataset, **options) for f in (file, plain)}
    assert found[True].loss_last_epoch == pytest.approx(found[False].loss_last_epoch, rel=0.2)


@pytest.mark.parametrize("kernels", [0, -1])
@pytest.mark.parametrize("place", [0, 37, -1])
def test_what_is_no_number_does_not_vanish_in_integers(runtime, kernels, place):
    block, (x, dy, found, weight, bias) = made(2, 5, 6, 20, 24, 3)
    inputs = (x, dy, found, weight, bias)
    set_instruction_set(int8_instruction_sets()[kernels])
    try:
        program = Program.load(lower(Alone(block), inputs))
        for index, output in ((0, -1), (1, 2), (3, 0)):  # x: observed, dy: dweight, weight: y
            damaged = [i.clone() for i in inputs]
            damaged[index].view(-1)[place] = torch.nan
            assert np.isnan(execute(program, damaged)[output]).any()
        program.close()
    finally:
        set_instruction_set(int8_instruction_sets()[0])


@pytest.mark.parametrize("found", [(0, 1e-38), (-1e-44, 0), (0, 0), (-np.inf, np.inf), (np.nan, 1)])
def test_no_range_makes_a_result_that_is_no_number(runtime, found):
    block, (x, dy, _, weight, bias) = made(2, 5, 6, 20, 24, 3)
    weight = weight * torch.tensor([1e-44] + [1] * 23)  # a column that has all but vanished
    for kind in (block, b.QuantizedBlock(block.layer)):
        inputs = (x, dy, torch.tensor(found, dtype=torch.float32), weight, bias)
        program = Program.load(lower(Alone(kind), inputs))
        assert all(np.isfinite(o).all() for o in execute(program, inputs))
        program.close()
