import pytest
import torch

from edge_sdk.errors import UnsupportedLayerError
from edge_sdk.export import blocks as b
from edge_sdk.export.lowering import lower
from edge_sdk.export.steps import TrainingStep, softmax_cross_entropy
from edge_sdk.runtime import Program


@pytest.fixture
def float64():
    """Blocks make their constants in the default type, so they can be checked in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


def in_form(block, name, tensor):
    form = block.forms[name]
    return tensor.reshape(form.view).permute(form.axes).reshape(form.shape)


CASES = {
    "normalize": (
        b.NormalizeBlock(torch.tensor([0.5, 0.25, 0.0]), torch.tensor([0.5, 0.25, 2.0])),
        lambda x: (
            (x - x.new_tensor([0.5, 0.25, 0.0]).view(3, 1, 1))
            / x.new_tensor([0.5, 0.25, 2.0]).view(3, 1, 1)
        ),
        {},
    ),
    "convolution": (
        b.Conv3x3Block("l", 3, 5, bias=True),
        lambda x, weight, bias: torch.nn.functional.conv2d(x, weight, bias, padding=1),
        {"weight": (5, 3, 3, 3), "bias": (5,)},
    ),
    "convolution with many outputs": (
        b.Conv3x3Block("l", 3, 28, bias=True),
        lambda x, weight, bias: torch.nn.functional.conv2d(x, weight, bias, padding=1),
        {"weight": (28, 3, 3, 3), "bias": (28,)},
    ),
    "instance norm": (
        b.InstanceNormBlock("l", 3, 1e-5),
        lambda x, weight, bias: torch.nn.functional.group_norm(x, 3, weight, bias, 1e-5),
        {"weight": (3,), "bias": (3,)},
    ),
    "relu": (b.ReluBlock(), torch.relu, {}),
    "average pool": (b.AvgPoolBlock(), lambda x: torch.nn.functional.avg_pool2d(x, 2), {}),
    "relu and pool": (
        b.ReluAvgPoolBlock(),
        lambda x: torch.nn.functional.avg_pool2d(torch.relu(x), 2),
        {},
    ),
    "linear": (
        b.FlattenLinearBlock("l", (3, 4, 6), 7),
        lambda x, weight, bias: torch.nn.functional.linear(x.flatten(1), weight, bias),
        {"weight": (7, 72), "bias": (7,)},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 2])
def test_forward_and_backward_equal_autograd_in_float64(float64, name, batch):
    block, layer, shapes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 6, 3, generator=generator, requires_grad=True)
    weights = [torch.randn(s, generator=generator, requires_grad=True) for s in shapes.values()]
    truth = layer(nchw(x), *weights)
    truth = nhwc(truth) if truth.dim() == 4 else truth[None]
    dy = torch.randn(truth.shape, generator=generator)
    expected = torch.autograd.grad(truth, [x, *weights], dy)

    with torch.no_grad():
        values = {
            f"l.{n}": in_form(block, f"l.{n}", w) for n, w in zip(shapes, weights, strict=True)
        }
        y, saved = block.forward(x, values)
        dx, gradients = block.backward(dy, saved, values)
    torch.testing.assert_close(y, truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dx, expected[0], rtol=1e-10, atol=1e-10)
    assert gradients.keys() == block.forms.keys()
    for n, gradient in zip(shapes, expected[1:], strict=True):
        form = in_form(block, f"l.{n}", gradient)
        torch.testing.assert_close(gradients[f"l.{n}"], form, rtol=1e-10, atol=1e-10)


def test_cross_entropy_equals_autograd_for_soft_labels_and_skips_empty_rows(float64):
    logits = torch.randn(1, 4, 5, requires_grad=True, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor(
        [[0.2, 0.3, 0.5, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 1]]
    )
    truth = -(labels * logits.log_softmax(2)).sum()
    (expected,) = torch.autograd.grad(truth, logits)
    with torch.no_grad():
        loss, gradient = softmax_cross_entropy(logits, labels[None].double())
    torch.testing.assert_close(loss[0], truth)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[0, 2].any()


def test_cross_entropy_saturates_instead_of_becoming_infinite():
    logits = torch.tensor([[[0.0, 1e4]]])
    loss, gradient = softmax_cross_entropy(logits, torch.tensor([[[1.0, 0.0]]]))
    assert 80 < float(loss) < 90
    assert gradient.tolist() == [[[-1.0, 1.0]]]


def test_layers_in_other_orders_lower_and_run_too(runtime):
    """A bias without a norm behind it, ReLU and pool apart, a side that stays odd."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 3, 3, padding=1),
        torch.nn.AvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(27, 5),
    )
    chain = [
        b.Conv3x3Block("0", 2, 4, bias=True),
        b.ReluBlock(),
        b.Conv3x3Block("2", 4, 3, bias=True),
        b.AvgPoolBlock(),
        b.FlattenLinearBlock("5", (3, 3, 3), 5),
    ]
    named = dict(network.named_parameters())
    forms = {n: block for block in chain for n in block.forms}
    images, labels = torch.rand(2, 6, 6, 2), torch.eye(5)[:2]
    loss = -(labels * network(nchw(images)).log_softmax(1)).sum()
    gradients = torch.autograd.grad(loss, list(named.values()))
    values = [in_form(forms[n], n, p.detach()).contiguous() for n, p in named.items()]

    program = Program.load(lower(TrainingStep(chain, list(named)), (images, labels, *values)))
    outputs = [o.empty() for o in program.outputs]
    program.execute([x.numpy() for x in (images, labels, *values)], outputs)
    assert outputs[0][0] == pytest.approx(loss.item(), rel=1e-5)
    for name, truth, found in zip(named, gradients, outputs[2:], strict=True):
        expected = in_form(forms[name], name, truth)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-6)


def test_an_operation_outside_of_the_delegate_is_named(runtime):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.cumsum(torch.relu(x), dim=0)

    with pytest.raises(UnsupportedLayerError, match=r"outside of them: .*cumsum"):
        lower(Odd(), (torch.zeros(3, 3),))
