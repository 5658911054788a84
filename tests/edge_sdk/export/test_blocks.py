import numpy as np
import pytest
import torch
from torch.nn import functional

from edge_sdk.errors import UnsupportedLayerError
from edge_sdk.export import blocks as b
from edge_sdk.export.chain import blocks_of_layers
from edge_sdk.export.lowering import lower
from edge_sdk.export.operators import AVERAGE_POOL, MAX_POOL
from edge_sdk.export.steps import TrainingStep
from edge_sdk.runtime import Program, instruction_sets, set_instruction_set


@pytest.fixture
def each_instruction_set(runtime):
    """The names of this processor's instruction sets; the best is in use again afterwards."""
    names = instruction_sets()
    yield names
    set_instruction_set(names[0])


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def in_form(block, name, tensor):
    form = block.forms[name]
    return tensor.reshape(form.view).permute(form.axes).reshape(form.shape)


def convolution(kernel):
    return lambda x, weight, bias=None: functional.conv2d(x, weight, bias, padding=kernel // 2)


def norm(channels, then=lambda x: x):
    return lambda x, weight, bias: then(functional.group_norm(x, channels, weight, bias, 1e-5))


# Name: block, the layer in torch, (channels, height, width), the parameters' shapes.
CASES = {
    "normalize": (
        b.NormalizeBlock(torch.tensor([0.5, 0.25, 0.0]), torch.tensor([0.5, 0.25, 2.0])),
        lambda x: (
            (x - x.new_tensor([0.5, 0.25, 0.0]).view(3, 1, 1))
            / x.new_tensor([0.5, 0.25, 2.0]).view(3, 1, 1)
        ),
        (3, 4, 6),
        {},
    ),
    "3x3": (
        b.ConvolutionBlock("l", 3, 5, 3, bias=True),
        convolution(3),
        (3, 4, 6),
        {"weight": (5, 3, 3, 3), "bias": (5,)},
    ),
    "1x1 without bias": (
        b.ConvolutionBlock("l", 5, 3, 1, bias=False),
        convolution(1),
        (5, 3, 3),
        {"weight": (3, 5, 1, 1)},
    ),
    "5x5, more outputs than a panel is wide, more inputs than a tile is high": (
        b.ConvolutionBlock("l", 17, 70, 5, bias=True),
        convolution(5),
        (17, 7, 5),
        {"weight": (70, 17, 5, 5), "bias": (70,)},
    ),
    "few inputs, whose gradient multiplies before it spreads": (
        b.ConvolutionBlock("l", 3, 40, 3, bias=True),
        convolution(3),
        (3, 5, 7),
        {"weight": (40, 3, 3, 3), "bias": (40,)},
    ),
    "few inputs, and an image smaller than the kernel": (
        b.ConvolutionBlock("l", 1, 90, 7, bias=False),
        convolution(7),
        (1, 2, 1),
        {"weight": (90, 1, 7, 7)},
    ),
    "an image smaller than the kernel": (
        b.ConvolutionBlock("l", 2, 33, 7, bias=True),
        convolution(7),
        (2, 2, 1),
        {"weight": (33, 2, 7, 7), "bias": (33,)},
    ),
    "lines longer than a block of pixels": (
        b.ConvolutionBlock("l", 1, 4, 3, bias=True),
        convolution(3),
        (1, 2, 150),
        {"weight": (4, 1, 3, 3), "bias": (4,)},
    ),
    "instance norm": (
        b.ActivationBlock(norm=b.Norm("l", 3, 1e-5)),
        norm(3),
        (3, 5, 7),
        {"weight": (3,), "bias": (3,)},
    ),
    "instance norm of more channels than a chunk, ReLU": (
        b.ActivationBlock(norm=b.Norm("l", 67, 1e-5), relu=True),
        norm(67, torch.relu),
        (67, 3, 3),
        {"weight": (67,), "bias": (67,)},
    ),
    "instance norm, ReLU, average pool of odd sides": (
        b.ActivationBlock(norm=b.Norm("l", 5, 1e-5), relu=True, pool=AVERAGE_POOL, pool_size=2),
        norm(5, lambda x: functional.avg_pool2d(torch.relu(x), 2)),
        (5, 7, 5),
        {"weight": (5,), "bias": (5,)},
    ),
    "instance norm, max pool 3x3": (
        b.ActivationBlock(norm=b.Norm("l", 4, 1e-5), pool=MAX_POOL, pool_size=3),
        norm(4, lambda x: functional.max_pool2d(x, 3)),
        (4, 7, 6),
        {"weight": (4,), "bias": (4,)},
    ),
    "ReLU": (b.ActivationBlock(relu=True), torch.relu, (3, 4, 6), {}),
    "average pool": (
        b.ActivationBlock(pool=AVERAGE_POOL, pool_size=3),
        lambda x: functional.avg_pool2d(x, 3),
        (3, 7, 6),
        {},
    ),
    "max pool": (
        b.ActivationBlock(pool=MAX_POOL, pool_size=2),
        lambda x: functional.max_pool2d(x, 2),
        (3, 4, 7),
        {},
    ),
    "ReLU, max pool": (
        b.ActivationBlock(relu=True, pool=MAX_POOL, pool_size=2),
        lambda x: functional.max_pool2d(torch.relu(x), 2),
        (20, 6, 6),
        {},
    ),
    "linear": (
        b.LinearBlock("l", (3, 4, 6), 7),
        lambda x, weight, bias: functional.linear(x.flatten(1), weight, bias),
        (3, 4, 6),
        {"weight": (7, 72), "bias": (7,)},
    ),
    "linear without bias, many outputs": (
        b.LinearBlock("l", (2, 1, 1), 129, bias=False),
        lambda x, weight: functional.linear(x.flatten(1), weight),
        (2, 1, 1),
        {"weight": (129, 2)},
    ),
}


class Alone(torch.nn.Module):
    """A block's both directions: x, dy and parameters to y, dx and the parameters' gradients."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, dy, *parameters):
        values = dict(zip(self.block.forms, parameters, strict=True))
        y, saved = self.block.forward(x, values)
        dx, gradients = self.block.backward(dy, saved, values)
        return y, dx, *(gradients[name] for name in self.block.forms)


def execute(program, inputs):
    outputs = [o.empty() for o in program.outputs]
    for output in outputs:
        output.fill(np.nan)  # what is not written is found
    program.execute([x.detach().float().contiguous().numpy() for x in inputs], outputs)
    return outputs


def assert_near(found, truth):
    expected = truth.detach().numpy()
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= 3e-6 * np.linalg.norm(expected) + 1e-12


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_and_backward_equal_autograd_in_float64(each_instruction_set, name, batch):
    block, layer, (channels, height, width), shapes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, height, width, channels, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    weights = [
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True)
        for s in shapes.values()
    ]
    truth = nhwc(layer(nchw(x), *weights))
    dy = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(truth, [x, *weights], dy)
    names = [f"l.{n}" for n in shapes]
    values = [in_form(block, n, w) for n, w in zip(names, weights, strict=True)]
    expected = [truth, gradients[0]]
    expected += [in_form(block, n, g) for n, g in zip(names, gradients[1:], strict=True)]

    inputs = (x, dy, *values)
    floats = tuple(i.detach().float().contiguous() for i in inputs)
    program = Program.load(lower(Alone(block), floats))
    for instruction_set in each_instruction_set:
        set_instruction_set(instruction_set)
        for found, wanted in zip(execute(program, inputs), expected, strict=True):
            assert_near(found, wanted)


def test_of_equal_maxima_the_first_takes_the_gradient_as_in_torch(each_instruction_set):
    block = b.ActivationBlock(pool=MAX_POOL, pool_size=2)
    x = torch.tensor([[1.0, 1, 2, 0], [1, 1, 0, 2], [0, 3, 0, 0], [3, 3, 0, 0]])
    x = x.view(1, 4, 4, 1).requires_grad_()
    dy = torch.arange(1.0, 5).view(1, 2, 2, 1)
    (truth,) = torch.autograd.grad(nhwc(functional.max_pool2d(nchw(x), 2)), x, dy)
    assert truth.flatten().tolist() == [1, 0, 2, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0]
    program = Program.load(lower(Alone(block), (x.detach(), dy)))
    for instruction_set in each_instruction_set:
        set_instruction_set(instruction_set)
        np.testing.assert_array_equal(execute(program, (x, dy))[1], truth.numpy())


@pytest.mark.parametrize("size", [1, 2])
def test_nan_reaches_the_result_instead_of_being_clipped_away(each_instruction_set, size):
    for pool in (AVERAGE_POOL, MAX_POOL):
        block = b.ActivationBlock(relu=True, pool=pool, pool_size=size)
        x = torch.ones(1, 2, 2, 20)
        x[0, :, :, 3] = torch.tensor([[0.0, float("nan")], [2.0, 3.0]])
        program = Program.load(lower(Alone(block), (x, torch.zeros(1, 2 // size, 2 // size, 20))))
        for instruction_set in each_instruction_set:
            set_instruction_set(instruction_set)
            y = execute(program, (x, torch.zeros(program.inputs[1].shape)))[0]
            assert np.isnan(y).sum() == 1


class Loss(torch.nn.Module):
    def forward(self, logits, labels):
        return torch.ops.trajsyn.softmax_cross_entropy(logits, labels)


def cross_entropy(logits, labels):
    program = Program.load(lower(Loss(), (logits.detach().float(), labels.float())))
    return execute(program, (logits, labels))


def test_cross_entropy_equals_autograd_for_soft_labels_and_skips_empty_rows(runtime):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 5, requires_grad=True, generator=generator, dtype=torch.float64)
    labels = torch.tensor(
        [
            [0.2, 0.3, 0.5, 0, 0],
            [0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0],
            [2, 0, 0, 0, 1],
            [1, 0, -1, 0, 0],  # any loss that raising all logits leaves as it is
        ]
    )
    truth = -(labels * logits.log_softmax(1)).sum()
    (expected,) = torch.autograd.grad(truth, logits)
    loss, gradient = cross_entropy(logits, labels)
    assert_near(loss, truth[None])
    assert_near(gradient, expected)
    assert not gradient[2].any()


def test_cross_entropy_of_certain_and_wrong_logits_is_finite_and_exact(runtime):
    logits = torch.tensor([[0.0, 1e4], [0.0, -1e4]])
    loss, gradient = cross_entropy(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert loss == 1e4
    assert gradient.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_the_result_does_not_depend_on_threads(runtime):
    from edge_sdk.runtime import set_threads

    block = b.ConvolutionBlock("l", 16, 24, 3, bias=True)
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 9, 9, 16, generator=generator), torch.randn(2, 9, 9, 24)
    inputs = (x, dy, torch.randn(144, 24, generator=generator), torch.randn(24))
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


def test_layers_in_any_order_lower_and_run(runtime):
    """Bias without norm, ReLU and pool apart and in reverse, odd sides, two linear layers."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 5, padding=2),
        torch.nn.MaxPool2d(2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 3, 3, padding="same", bias=False),
        torch.nn.GroupNorm(3, 3),
        torch.nn.AvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(12, 8),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 5),
    )
    chain = blocks_of_layers(list(network.named_children()), (2, 9, 11))
    kinds = ["Convolution", "Activation", "Activation", "Convolution", "Activation"]
    kinds += ["Linear", "Activation", "Linear"]
    assert [type(block).__name__ for block in chain] == [f"{k}Block" for k in kinds]
    named = dict(network.named_parameters())
    forms = {n: block for block in chain for n in block.forms}
    images, labels = torch.rand(3, 9, 11, 2), torch.eye(5)[:3]
    loss = -(labels * network(nchw(images)).log_softmax(1)).sum()
    gradients = torch.autograd.grad(loss, list(named.values()))
    values = [in_form(forms[n], n, p.detach()).contiguous() for n, p in named.items()]

    program = Program.load(lower(TrainingStep(chain, list(named)), (images, labels, *values)))
    outputs = execute(program, (images, labels, *values))
    assert outputs[0][0] == pytest.approx(loss.item(), rel=1e-5)
    for name, truth, found in zip(named, gradients, outputs[2:], strict=True):
        expected = in_form(forms[name], name, truth)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-6)


def test_an_operation_that_the_runtime_lacks_is_named(runtime):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.cumsum(torch.relu(x), dim=0)

    with pytest.raises(UnsupportedLayerError, match="no operator for: aten::cumsum, aten::relu"):
        lower(Odd(), (torch.zeros(3, 3),))
