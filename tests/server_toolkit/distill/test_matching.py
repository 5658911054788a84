"""The constant-memory gradient is the exact one."""

import pytest
import torch

from models import ModelSpec, layout_of
from models.layers import AveragePool, Convolution, InstanceNorm, Linear, MaxPool, ReLU
from server_toolkit.distill.matching import FlatNetwork, match_gradient

SPEC = ModelSpec(
    channels=2, image_size=8, classes=3, width=4, depth=2, mean=(0.4, 0.5), std=(0.3, 0.2)
)


CHAIN = ModelSpec(
    architecture="chain", channels=2, image_size=7, classes=3, mean=(0.4, 0.5), std=(0.3, 0.2),
    layers=(
        Convolution(outputs=4, kernel=5), MaxPool(size=2), ReLU(), InstanceNorm(),
        Convolution(outputs=3, kernel=1), AveragePool(size=2), Linear(outputs=5), ReLU(),
    ),
)  # fmt: skip


def problem(dtype=torch.float64, seed=0, spec=SPEC):
    g = torch.Generator().manual_seed(seed)
    network = FlatNetwork(spec, dtype=dtype)
    size = layout_of(spec).size
    start = torch.randn(size, generator=g, dtype=dtype) * 0.3
    target = start + torch.randn(size, generator=g, dtype=dtype) * 0.05
    images = torch.rand(5, 2, *2 * [spec.image_size], generator=g, dtype=dtype)
    label_logits = torch.randn(5, 3, generator=g, dtype=dtype)
    batches = [torch.tensor(b) for b in ([0, 1, 2, 3, 4], [0, 2, 4], [1, 3, 0], [4, 1, 2])]
    return (
        network,
        dict(start=start, target=target, images=images, label_logits=label_logits),
        batches,
    )


def unrolled(network, values, batches, step_size):
    """The same loss with the whole graph of all steps kept by autograd."""
    images = values["images"].clone().requires_grad_()
    label_logits = values["label_logits"].clone().requires_grad_()
    alpha = torch.tensor(step_size, dtype=images.dtype, requires_grad=True)
    theta = values["start"].clone().requires_grad_()
    for batch in batches:
        loss = network.loss(theta, images[batch], label_logits[batch])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - alpha * gradient
    distance = (values["start"] - values["target"]).square().sum()
    match = (theta - values["target"]).square().sum() / distance
    return match.item(), torch.autograd.grad(match, (images, label_logits, alpha))


@pytest.mark.parametrize("spec", [SPEC, CHAIN], ids=["convnet", "chain"])
def test_equals_the_unrolled_gradient_in_float64(spec):
    network, values, batches = problem(spec=spec)
    got = match_gradient(network, **values, step_size=0.3, batches=batches)
    loss, (images, label_logits, alpha) = unrolled(network, values, batches, 0.3)
    assert got.loss == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(got.images, images, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(got.label_logits, label_logits, rtol=1e-9, atol=1e-13)
    assert got.step_size == pytest.approx(alpha.item(), rel=1e-9)
    assert images.abs().max() > 1e-6  # the agreement is not one of zeros


def test_keeps_the_curvature_term_that_tesla_drops():
    # With the weights held constant in the reverse sweep the gradient differs visibly.
    network, values, batches = problem()
    exact = match_gradient(network, **values, step_size=0.3, batches=batches).images
    path = [values["start"]]
    for batch in batches:
        theta = path[-1].clone().requires_grad_()
        loss = network.loss(theta, values["images"][batch], values["label_logits"][batch])
        path.append(path[-1] - 0.3 * torch.autograd.grad(loss, theta)[0])
    adjoint = 2 * (path[-1] - values["target"])
    adjoint /= (values["start"] - values["target"]).square().sum()
    images = values["images"].clone().requires_grad_()
    slope = torch.zeros((), dtype=images.dtype)
    for batch, theta in zip(batches, path, strict=False):
        theta = theta.clone().requires_grad_()
        loss = network.loss(theta, images[batch], values["label_logits"][batch])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        slope = slope - 0.3 * torch.dot(adjoint, gradient)
    (tesla,) = torch.autograd.grad(slope, images)
    assert (tesla - exact).norm() / exact.norm() > 1e-3


def test_a_student_that_does_not_move_has_loss_one():
    network, values, batches = problem()
    assert match_gradient(network, **values, step_size=0.0, batches=batches).loss == 1.0


def test_replaying_the_path_that_made_the_target_has_loss_zero():
    network, values, batches = problem()
    theta = values["start"].clone()
    for batch in batches:
        leaf = theta.clone().requires_grad_()
        loss = network.loss(leaf, values["images"][batch], values["label_logits"][batch])
        theta = theta - 0.3 * torch.autograd.grad(loss, leaf)[0]
    values["target"] = theta
    got = match_gradient(network, **values, step_size=0.3, batches=batches)
    assert got.loss < 1e-25
    assert got.images.abs().max() < 1e-10


def test_an_image_outside_every_batch_has_no_gradient():
    network, values, _ = problem()
    got = match_gradient(network, **values, step_size=0.3, batches=[torch.tensor([0, 1])] * 2)
    assert got.images[2:].abs().max() == 0
    assert got.images[:2].abs().max() > 0


class HeldTensor:
    """A tensor that autograd keeps for the backward pass, counted while it is kept."""

    alive_bytes = peak_bytes = 0

    def __init__(self, tensor):
        self.tensor = tensor
        HeldTensor.alive_bytes += tensor.nbytes
        HeldTensor.peak_bytes = max(HeldTensor.peak_bytes, HeldTensor.alive_bytes)

    def __del__(self):
        HeldTensor.alive_bytes -= self.tensor.nbytes


def peak_graph_bytes(compute):
    HeldTensor.alive_bytes = HeldTensor.peak_bytes = 0
    with torch.autograd.graph.saved_tensors_hooks(HeldTensor, lambda held: held.tensor):
        compute()
    return HeldTensor.peak_bytes


def test_more_steps_grow_the_graph_by_less_than_a_hundredth_of_the_textbook_s():
    network, values, batches = problem()

    def peak(steps, method):
        more = batches[:1] * steps
        return peak_graph_bytes(lambda: method(more))

    def ours(b):
        match_gradient(network, **values, step_size=0.01, batches=b)

    def textbook(b):
        unrolled(network, values, b, 0.01)

    assert peak(20, textbook) > 5 * peak(2, textbook)  # the measure does see a growing graph
    growth = peak(20, textbook) - peak(2, textbook)
    assert peak(20, ours) - peak(2, ours) < growth / 100
