"""Simulated int8 in the runtime's operators, by hand and against torch, with every kernel."""

import numpy as np
import pytest
import torch

from edge_sdk.export import blocks as b
from edge_sdk.export.lowering import lower
from edge_sdk.export.rounded_layers import round_layers
from edge_sdk.runtime import Program, instruction_sets, set_instruction_set

EMPTY = (1.0, -1.0)


@pytest.fixture
def each_instruction_set(runtime):
    """The names of this processor's instruction sets; the best is in use again afterwards."""
    names = instruction_sets()
    yield names
    set_instruction_set(names[0])


class Alone(torch.nn.Module):
    """x, dy, range and parameters to y, dx, what was observed, and the parameters' gradients."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, dy, found, *parameters):
        values = dict(zip(self.block.forms, parameters, strict=True)) | {self.block.range: found}
        y, saved = self.block.forward(x, values)
        dx, gradients = self.block.backward(dy, saved, values)
        return y, dx, self.block.observed(saved), *(gradients[n] for n in self.block.forms)


def compiled(layer, *inputs):
    return Program.load(lower(Alone(b.QuantizedBlock(layer)), inputs))


def execute(program, *inputs):
    outputs = [o.empty() for o in program.outputs]
    for output in outputs:
        output.fill(np.nan)  # what is not written is found
    program.execute([i.detach().float().contiguous().numpy() for i in inputs], outputs)
    return outputs


def test_inputs_are_rounded_within_the_range_and_gradients_stop_beyond_it(each_instruction_set):
    """By hand: 256 values from -1.00 to 1.55 in steps of 0.01."""
    table = [  # input, rounded, does the gradient pass?
        (0.0, 0.0, True),
        (0.014, 0.01, True),
        (-0.016, -0.02, True),
        (1.55, 1.55, True),
        (1.554, 1.55, True),  # it rounds to the last value
        (1.556, 1.55, False),
        (7.0, 1.55, False),
        (-1.0, -1.0, True),
        (-1.004, -1.0, True),
        (-1.006, -1.0, False),
        (-300.0, -1.0, False),
    ] * 3  # more than a vector, and no multiple of one
    x, rounded, passes = (torch.tensor(column) for column in zip(*table, strict=True))
    x, dy = x.view(1, 1, -1, 1), torch.arange(1.0, len(table) + 1).view(1, 1, -1, 1)
    inputs = (x, dy, torch.tensor([-1.0, 1.55]), torch.tensor([[0.5]]))
    program = compiled(b.ConvolutionBlock("l", 1, 1, 1, bias=False), *inputs)
    for name in each_instruction_set:
        set_instruction_set(name)
        y, dx, observed, dweight = execute(program, *inputs)
        np.testing.assert_allclose(y.ravel(), 0.5 * rounded, rtol=1e-5)
        np.testing.assert_allclose(dx.ravel(), 0.5 * dy.ravel() * passes, rtol=1e-6)
        np.testing.assert_allclose(dweight.item(), (dy.ravel() * rounded).sum(), rtol=1e-5)
        assert observed.tolist() == [[-300.0, 7.0]]


def test_weights_are_rounded_by_the_largest_of_their_output(each_instruction_set):
    """By hand: a step of 0.01, a step of 1, and an output whose weights are all zero."""
    weight = torch.tensor([[1.27, -127.0, 0.0], [-0.634, 2.4, 0.0], [0.016, 0.6, 0.0]])
    expected = np.array([[1.27, -127, 0], [-0.63, 2, 0], [0.02, 1, 0]])
    bias = torch.tensor([10.0, 20.0, 30.0])
    dy = torch.tensor([[1.0, 0, 5], [0, 1, 5], [0, 0, 5]])
    inputs = (torch.eye(3), dy, torch.tensor(EMPTY), weight, bias)
    program = compiled(b.LinearBlock("l", (3, 1, 1), 3), *inputs)
    for name in each_instruction_set:
        set_instruction_set(name)
        y, dx, observed, dweight, dbias = execute(program, *inputs)
        np.testing.assert_allclose(y, expected + bias.numpy(), rtol=1e-6)
        back = [expected[:, 0], expected[:, 1], [0, 0, 0]]
        np.testing.assert_allclose(dx.reshape(3, 3), back, rtol=1e-6, atol=1e-7)
        assert (y[:, 2] == 30).all()  # exactly: nothing is divided by zero
        np.testing.assert_array_equal(dweight, dy)  # straight through to the weight itself
        assert dbias.tolist() == [1, 1, 15]
        assert observed.tolist() == [[0, 1]] * 3


@pytest.mark.parametrize(
    "ends", [(-0.3, 7.1), (0.5, 2.0), (-2.0, -0.5), (0.0, 0.0), (-1e-30, 1e-30), (-3e38, 3e38)]
)
def test_zero_stays_exactly_zero_in_every_range(each_instruction_set, ends):
    x, dy = torch.zeros(1, 3, 3, 2), torch.ones(1, 3, 3, 3)
    inputs = (x, dy, torch.tensor(ends), torch.full((18, 3), 0.7))
    program = compiled(b.ConvolutionBlock("l", 2, 3, 3, bias=False), *inputs)
    for name in each_instruction_set:
        set_instruction_set(name)
        y, dx, _, dweight = execute(program, *inputs)
        assert not y.any()
        assert not dweight.any()
        assert dx.all()  # zero is inside every range


def test_an_empty_range_rounds_no_input(each_instruction_set):
    x = torch.linspace(-900, 900, 30).view(1, 2, 5, 3)
    dy = torch.ones(1, 2, 5, 3)
    inputs = (x, dy, torch.tensor(EMPTY), torch.eye(3))
    program = compiled(b.ConvolutionBlock("l", 3, 3, 1, bias=False), *inputs)
    for name in each_instruction_set:
        set_instruction_set(name)
        y, dx, observed, _ = execute(program, *inputs)
        np.testing.assert_allclose(y, x, rtol=1e-6)
        np.testing.assert_allclose(dx, dy, rtol=1e-6)
        assert observed.tolist() == [[-900, 900]]


def on_the_grid(ends, shape, generator):
    """Inputs near the range's values and beyond both ends; none in doubt between two values."""
    low, high = ends
    step = (high - low) / 255
    zero = -128 - round(low / step)
    whole = torch.randint(-200, 200, shape, generator=generator)
    off = 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.4
    return (whole + off - zero) * step


CASES = {  # block, torch's layer, (channels, height, width)
    "3x3": (b.ConvolutionBlock("l", 3, 5, 3, bias=True), torch.nn.Conv2d(3, 5, 3), (3, 5, 7)),
    "5x5, many channels": (
        b.ConvolutionBlock("l", 17, 70, 5, bias=False),
        torch.nn.Conv2d(17, 70, 5, bias=False),
        (17, 7, 5),
    ),
    "one input channel": (
        b.ConvolutionBlock("l", 1, 33, 3, bias=True),
        torch.nn.Conv2d(1, 33, 3),
        (1, 6, 6),
    ),
    "linear": (b.LinearBlock("l", (3, 4, 6), 7), torch.nn.Linear(72, 7), (3, 4, 6)),
}


@pytest.mark.parametrize("ends", [(-1.0, 2.5), (0.0, 6.0), None])
@pytest.mark.parametrize("name", CASES)
def test_both_directions_equal_rounded_layers_in_float64(each_instruction_set, name, ends):
    layer, module, (channels, height, width) = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x = on_the_grid(ends or (-1.0, 2.5), (3, height, width, channels), generator)
    network = torch.nn.Sequential(module).double()
    if isinstance(module, torch.nn.Conv2d):
        module.padding = (module.kernel_size[0] // 2,) * 2
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    pixels = x.permute(0, 3, 1, 2).clone().requires_grad_()
    round_layers(network, {"0.range": None if ends is None else np.array(ends, np.float32)})
    is_linear = isinstance(module, torch.nn.Linear)
    y = network(pixels.flatten(1) if is_linear else pixels)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    parameters = list(module.parameters())
    dx, *gradients = torch.autograd.grad(y, [pixels, *parameters], dy)

    def in_form(tensors):
        forms = zip(layer.forms.values(), tensors, strict=True)
        return [t.reshape(f.view).permute(f.axes).reshape(f.shape) for f, t in forms]

    def nhwc(t):
        return t.permute(0, 2, 3, 1) if t.dim() == 4 else t

    inputs = (x, nhwc(dy), torch.tensor(ends or EMPTY), *in_form(p.data for p in parameters))
    program = compiled(layer, *(i.float().contiguous() for i in inputs))
    for instruction_set in each_instruction_set:
        set_instruction_set(instruction_set)
        found_y, found_dx, observed, *found = execute(program, *inputs)
        pairs = [(found_y, nhwc(y)), (found_dx, nhwc(dx))]
        for value, truth in pairs + list(zip(found, in_form(gradients), strict=True)):
            expected = truth.detach().numpy()
            assert np.linalg.norm(value - expected) <= 3e-6 * np.linalg.norm(expected)
        extremes = [x.amin(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))]
        np.testing.assert_array_equal(observed, torch.stack(extremes, dim=1).float())
