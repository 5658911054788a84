"""The constant-memory gradient is the exact one."""

import itertools

import numpy as np
import pytest
import torch
from torch.func import functional_call

from models import ModelSpec, layout_of
from models.layers import AveragePool, Convolution, InstanceNorm, Linear, MaxPool, ReLU
from models.networks import build_model
from server_toolkit.distill.augmentation import FAMILIES, Augmentation, draw_augmentations
from server_toolkit.distill.flat_network import Direction
from server_toolkit.distill.matching import (
    FlatNetwork,
    Student,
    match_each,
    match_gradient,
)
from server_toolkit.distill.memory import PeakOfStorages
from server_toolkit.distill.parameterisation import Fourier, LowResolution, Pixels

CHAIN = (
    Convolution(outputs=4, kernel=5), MaxPool(size=2), ReLU(), InstanceNorm(),
    Convolution(outputs=3, kernel=1, bias=False), AveragePool(size=2), Linear(outputs=5), ReLU(),
)  # fmt: skip


def make_spec(architecture="convnet", channels=2):
    return ModelSpec(
        architecture=architecture,
        channels=channels,
        image_size=11 if architecture == "chain" else 8,  # 11: every pool leaves pixels over
        classes=3,
        width=4,
        depth=2,
        mean=(0.4, 0.5, 0.3)[:channels],
        std=(0.3, 0.2, 0.25)[:channels],
        layers=CHAIN if architecture == "chain" else (),
    )


SPEC = make_spec()
BATCHES = {
    "mini-batches": [torch.tensor(b) for b in ([0, 2, 4], [1, 3, 0], [4, 1, 2])],
    "all": [torch.arange(5)] * 3,
}


def problem(dtype=torch.float64, seed=0, spec=SPEC):
    g = torch.Generator().manual_seed(seed)
    network = FlatNetwork(spec, dtype=dtype)
    size = layout_of(spec).size
    scale = 0.05 if spec.architecture == "alexnet" else 0.3
    start = torch.randn(size, generator=g, dtype=dtype) * scale
    target = start + torch.randn(size, generator=g, dtype=dtype) * scale / 6
    images = torch.rand(5, spec.channels, *2 * [spec.image_size], generator=g, dtype=dtype)
    label_logits = torch.randn(5, 3, generator=g, dtype=dtype)
    batches = [torch.tensor(b) for b in ([0, 1, 2, 3, 4], [0, 2, 4], [1, 3, 0], [4, 1, 2])]
    return (
        network,
        dict(start=start, target=target, images=images, label_logits=label_logits),
        batches,
    )


def loss_of(network, flat, images, label_logits):
    logits = network.logits(flat, images)
    return torch.nn.functional.cross_entropy(logits, label_logits.softmax(dim=1))


def unrolled(
    values, batches, step_size, *, spec=SPEC, momentum=0.0, augment=None, parameters=None, to=None
):
    """Loss and gradients with the whole graph of all steps kept by autograd, on torch's module."""
    module = build_model(spec, seed=0).to(values["start"].dtype)
    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]
    leaf = (values["images"] if parameters is None else parameters).clone().requires_grad_()
    images = leaf if to is None else to(leaf)
    label_logits = values["label_logits"].clone().requires_grad_()
    alpha = torch.tensor(step_size, dtype=images.dtype, requires_grad=True)
    theta = values["start"].clone().requires_grad_()
    velocity = torch.zeros_like(theta)
    for k, batch in enumerate(batches):
        pieces = theta.split([shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        x = images[batch] if augment is None else augment[k](images[batch])
        log_p = functional_call(module, weights, (x,)).log_softmax(dim=1)
        loss = -(label_logits[batch].softmax(dim=1) * log_p).sum(dim=1).mean()
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        velocity = momentum * velocity + gradient
        theta = theta - alpha * velocity
    distance = (values["start"] - values["target"]).square().sum()
    match = (theta - values["target"]).square().sum() / distance
    return match.item(), torch.autograd.grad(match, (leaf, label_logits, alpha))


def assert_gradients_agree(got, images, expected):
    # The module's mean and deviation are float32's nearest numbers: hence 1e-7.
    loss, (exact_images, exact_labels, exact_step) = expected
    assert got.loss == pytest.approx(loss, rel=1e-7)
    for mine, exact in ((images, exact_images), (got.label_logits, exact_labels)):
        assert exact.abs().max() > 1e-9  # the agreement is not one of zeros
        assert (mine - exact).norm() < 1e-6 * exact.norm()
    assert got.step_size == pytest.approx(exact_step.item(), rel=1e-6)


def combinations():
    """Every combination; AlexNet, which is wide, quickly only with everything on."""
    for architecture, channels, kind, momentum, augmented, batches in itertools.product(
        ["convnet", "alexnet", "chain"],
        [1, 3],
        ["pixels", "low_resolution", "fourier"],
        [0.0, 0.9],
        [False, True],
        BATCHES,
    ):
        everything = (kind, momentum, augmented, batches) == ("fourier", 0.9, True, "mini-batches")
        slow = architecture == "alexnet" and not everything
        yield pytest.param(
            architecture, channels, kind, momentum, augmented, BATCHES[batches],
            marks=[pytest.mark.slow] if slow else [],
            id=f"{architecture}-{channels}-{kind}-{momentum}-{augmented}-{batches}",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "channels", "kind", "momentum", "augmented", "batches"), [*combinations()]
)
def test_equals_the_unrolled_gradient_in_float64(
    architecture, channels, kind, momentum, augmented, batches
):
    spec = make_spec(architecture, channels)
    network, values, _ = problem(spec=spec)
    if architecture == "alexnet":
        batches = batches[:2]
    side = spec.image_size
    image_kind = {
        "pixels": Pixels(),
        "low_resolution": LowResolution(image_size=side, factor=2),
        "fourier": Fourier(image_size=side, channels=channels),
    }[kind]
    augment = None
    if augmented:
        augment = draw_augmentations(FAMILIES, steps=len(batches), rng=np.random.default_rng(3))
    parameters = image_kind.initial(values["images"])
    values["images"] = image_kind.pixels(parameters)
    got = match_gradient(
        network, **values, step_size=0.3, batches=batches, augment=augment, momentum=momentum
    )
    expected = unrolled(
        values, batches, 0.3, spec=spec, momentum=momentum, augment=augment,
        parameters=parameters, to=image_kind.pixels,
    )  # fmt: skip
    assert_gradients_agree(got, image_kind.pull_back(parameters, got.images), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_is_exact_through_every_family_of_augmentation(family):
    spec = make_spec(channels=3)
    network, values, _ = problem(spec=spec)
    batches = BATCHES["mini-batches"]
    augment = draw_augmentations([family], steps=3, rng=np.random.default_rng(1))
    got = match_gradient(network, **values, step_size=0.3, batches=batches, augment=augment)
    expected = unrolled(values, batches, 0.3, spec=spec, augment=augment)
    assert_gradients_agree(got, got.images, expected)


class Quadratic:
    """ℓ(θ) = ½ (θ − c)ᵀ A (θ − c), c the mean image: what a student does is a matrix power."""

    def __init__(self, matrix):
        self.matrix = matrix

    def gradient(self, weights, images, label_logits):
        return (weights - images.flatten(2).mean(dim=1)) @ self.matrix

    def gradient_along(self, weights, direction, images, label_logits):
        count = images.shape[1]
        product = direction @ self.matrix
        return Direction(
            slope=(self.gradient(weights, images, label_logits) * direction).sum(dim=1),
            weights=product,
            images=(-product / count)[:, None].expand(-1, count, -1).view_as(images),
            label_logits=torch.zeros_like(label_logits),
        )


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_matches_the_closed_form_of_a_linear_quadratic_student(momentum):
    g = torch.Generator().manual_seed(0)
    size, steps, alpha = 4, 7, 0.2
    root = torch.randn(size, size, generator=g, dtype=torch.float64)
    matrix = root @ root.T / size
    start, target = torch.randn(2, size, generator=g, dtype=torch.float64)
    images = torch.rand(3, 1, 2, 2, generator=g, dtype=torch.float64)

    def transition(alpha):  # (θ − c, v) -> (θ' − c, v')
        eye = torch.eye(size, dtype=torch.float64)
        top = torch.cat([eye - alpha * matrix, -alpha * momentum * eye], dim=1)
        return torch.cat([top, torch.cat([matrix, momentum * eye], dim=1)])

    center = images.flatten(1).mean(dim=0)
    power = torch.linalg.matrix_power(transition(alpha), steps)[:size, :size]
    error = center + power @ (start - center) - target
    distance = (start - target).square().sum()
    by_center = 2 * (torch.eye(size, dtype=torch.float64) - power).T @ error / distance
    tiny = 1e-6
    moved = [
        torch.linalg.matrix_power(transition(alpha + sign * tiny), steps)[:size, :size]
        for sign in (1, -1)
    ]
    by_alpha = 2 * error @ ((moved[0] - moved[1]) / (2 * tiny)) @ (start - center) / distance

    got = match_gradient(
        Quadratic(matrix), start=start, target=target, images=images,
        label_logits=torch.zeros(3, 2, dtype=torch.float64), step_size=alpha,
        batches=[torch.arange(3)] * steps, momentum=momentum,
    )  # fmt: skip
    assert got.loss == pytest.approx((error.square().sum() / distance).item(), rel=1e-12)
    expected = (by_center / 3).view(1, 1, 2, 2).expand(3, -1, -1, -1)
    torch.testing.assert_close(got.images, expected, rtol=1e-10, atol=1e-13)
    assert got.step_size == pytest.approx(by_alpha.item(), rel=1e-7)


def three_students(values, spec=SPEC):
    g = torch.Generator().manual_seed(9)
    flip = Augmentation("flip", (1.0,))
    orders = [torch.randperm(5, generator=g) for _ in range(3)]
    shifts = 0.1 * torch.randn(3, len(values["start"]), generator=g, dtype=torch.float64)
    return [
        Student(values["start"] + shift, values["target"], order.view(1, 5).expand(4, 5),
                [flip] * 4 if index else None)
        for index, (order, shift) in enumerate(zip(orders, shifts, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["convnet", "chain"])
@pytest.mark.parametrize("together", [False, True])
def test_several_students_give_what_each_gives_alone(architecture, together):
    spec = make_spec(architecture)
    network, values, _ = problem(spec=spec)
    students = three_students(values, spec)
    rest = {k: values[k] for k in ("images", "label_logits")} | dict(step_size=0.2, momentum=0.5)
    alone = [
        match_gradient(
            network, start=s.start, target=s.target, batches=s.batches, augment=s.augment, **rest
        )
        for s in students
    ]
    each = match_each(network, students=students, **rest, together=together)
    for name in ("images", "label_logits", "loss", "step_size"):
        singles = [getattr(match, name) for match in alone]
        torch.testing.assert_close([getattr(m, name) for m in each], singles, rtol=1e-9, atol=1e-12)


def test_students_with_batches_of_other_sizes_are_matched_apart():
    network, values, _ = problem()
    students = three_students(values)
    odd = Student(values["start"], values["target"], [torch.tensor([1, 2])])
    rest = {k: values[k] for k in ("images", "label_logits")} | dict(step_size=0.2)
    mixed = [students[0], odd, students[1]]
    each = match_each(network, students=mixed, **rest, together=True)
    for student, match in zip(mixed, each, strict=True):
        (alone,) = match_each(network, students=[student], **rest)
        torch.testing.assert_close(match.images, alone.images)


def test_refuses_no_students_and_a_missing_transform():
    network, values, batches = problem()
    with pytest.raises(ValueError, match="at least one"):
        match_each(network, students=[], images=values["images"],
                   label_logits=values["label_logits"], step_size=0.1)  # fmt: skip
    with pytest.raises(ValueError, match="1 transforms for 4 steps"):
        match_gradient(network, **values, step_size=0.1, batches=batches,
                       augment=[Augmentation("flip", (1.0,))])  # fmt: skip


def test_cutting_the_batch_into_parts_changes_nothing():
    network, values, batches = problem()
    cut = FlatNetwork(SPEC, dtype=torch.float64, part_bytes=1)
    whole, parts = (
        match_gradient(n, **values, step_size=0.3, batches=batches) for n in (network, cut)
    )
    torch.testing.assert_close(parts.images, whole.images, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(parts.label_logits, whole.label_logits, rtol=1e-10, atol=1e-14)
    assert parts.step_size == pytest.approx(whole.step_size, rel=1e-10)


def test_bfloat16_products_give_nearly_the_same_gradient_in_full_precision():
    values = problem(dtype=torch.float32)[1]
    batches = BATCHES["all"]
    exact, rough = (
        match_gradient(
            FlatNetwork(SPEC, product_dtype=product), **values, step_size=0.3, batches=batches
        )
        for product in (None, torch.bfloat16)
    )
    assert rough.images.dtype == torch.float32
    assert 1e-5 < (rough.images - exact.images).norm() / exact.images.norm() < 0.05


@pytest.mark.slow
def test_compiled_kernels_give_the_same_gradient():
    network, values, batches = problem(dtype=torch.float32)
    network = FlatNetwork(SPEC)
    compiled = FlatNetwork(SPEC, compiled=True)
    once, again = (
        match_gradient(n, **values, step_size=0.3, batches=batches[1:], momentum=0.5)
        for n in (network, compiled)
    )
    torch.testing.assert_close(again.images, once.images, rtol=1e-3, atol=1e-6)


def test_keeps_the_curvature_term_that_tesla_drops():
    # With the weights held constant in the reverse sweep the gradient differs visibly.
    network, values, batches = problem()
    exact = match_gradient(network, **values, step_size=0.3, batches=batches).images
    path = [values["start"]]
    for batch in batches:
        theta = path[-1].clone().requires_grad_()
        loss = loss_of(network, theta, values["images"][batch], values["label_logits"][batch])
        path.append(path[-1] - 0.3 * torch.autograd.grad(loss, theta)[0])
    adjoint = 2 * (path[-1] - values["target"])
    adjoint /= (values["start"] - values["target"]).square().sum()
    images = values["images"].clone().requires_grad_()
    slope = torch.zeros((), dtype=images.dtype)
    for batch, theta in zip(batches, path, strict=False):
        theta = theta.clone().requires_grad_()
        loss = loss_of(network, theta, images[batch], values["label_logits"][batch])
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
        loss = loss_of(network, leaf, values["images"][batch], values["label_logits"][batch])
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


def test_one_more_step_takes_one_more_weight_vector_of_memory_and_nothing_else():
    network = FlatNetwork(SPEC, device="meta")
    values = {k: v.to("meta") for k, v in problem(dtype=torch.float32)[1].items()}

    def peak_bytes(steps):
        with PeakOfStorages() as peak:
            match_gradient(
                network, **values, step_size=0.1, batches=[torch.arange(5, device="meta")] * steps
            )
        return peak.peak_bytes

    assert peak_bytes(6) - peak_bytes(4) == 2 * values["start"].nbytes
    assert peak_bytes(4) > 10 * values["start"].nbytes  # the measure sees activations
