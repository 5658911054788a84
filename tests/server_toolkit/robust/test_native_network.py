"""The devices' runtime gives a network's own logits, losses and gradients."""

import functools

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from edge_sdk.export import attack_program, evaluation_program, training_program
from models import ModelSpec
from models.networks import build_model
from server_toolkit.robust.attacks import losses
from server_toolkit.robust.attacks.model import loss_gradient
from server_toolkit.robust.native_network import NativeNetwork, Programs, image_gradient
from server_toolkit.robust.objectives.awp import AdversarialWeights
from server_toolkit.robust.objectives.base import plain_gradients
from server_toolkit.robust.objectives.inner import Ascent
from server_toolkit.robust.objectives.kl import Kl
from server_toolkit.robust.objectives.pgd_at import PgdAt

DIGITS = ModelSpec(channels=1, image_size=8, classes=10, width=8, depth=2, mean=(0.3,), std=(0.4,))
COLOUR = ModelSpec(channels=3, image_size=28, classes=7, width=4, mean=(0.3,) * 3, std=(0.4,) * 3)
ALEXNET = ModelSpec(
    architecture="alexnet", channels=1, image_size=28, classes=10, mean=(0.3,), std=(0.4,)
)
SPECS = [(DIGITS, 4), (COLOUR, 3), (ALEXNET, 2)]
OBJECTIVES = [Kl(Ascent(steps=1), clean_weight=0.5), PgdAt(Ascent(steps=1))]

# The programs and torch differ by rounding, as a share of the largest number; where it decides
# which pixel wins a max pool, by more: AlexNet's sixth image is one, 0.5 %.
TOLERANCE = 1e-4


@functools.cache
def programs(spec, size):
    return Programs(
        attack_program(spec, micro_batch=size),
        evaluation_program(spec, batch=size),
        training_program(spec, micro_batch=size),
    )


@functools.cache
def networks(spec, size):
    """The network in torch and, sharing its parameters, on the runtime."""
    model = build_model(spec, seed=0)
    return model, NativeNetwork(model, programs(spec, size))


def batch(spec, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, spec.channels, spec.image_size, spec.image_size)
    images = torch.rand(shape, generator=generator)
    return images, torch.randn(count, spec.classes, generator=generator).softmax(dim=1)


def assert_close(ours, theirs):
    scale = max(float(tensor.abs().max()) for tensor in theirs)
    for a, b in zip(ours, theirs, strict=True):
        # A bias before an instance norm has a gradient of rounding errors in torch, zero in ours.
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("count", [1, 4, 5])
@pytest.mark.parametrize(("spec", "size"), SPECS, ids=["digits", "colour", "alexnet"])
def test_everything_is_what_torch_computes(spec, size, count):
    model, native = networks(spec, size)
    images, target = batch(spec, count)
    loss = cross_entropy(model(images), target, reduction="sum")
    ours = native.cross_entropy(images, target)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    parameters = list(model.parameters())
    assert_close(
        torch.autograd.grad(3 * ours, parameters), torch.autograd.grad(3 * loss, parameters)
    )
    ascent = image_gradient(model, images, target)
    assert_close([image_gradient(native, images, target)], [ascent])
    with torch.no_grad():
        assert_close([native(images)], [model(images)])
    assert torch.equal(native(images), model(images))  # torch's own, to be differentiated


ATTACKS = {
    "cross_entropy": losses.cross_entropies,
    "margin": losses.margins,
    "dlr": losses.dlr,
    "targeted_dlr": lambda z, y: losses.targeted_dlr(z, y, (y + 1) % z.shape[1]),
    "raised_with_all_logits": lambda z, _: (z * z).sum(1),  # no attack's, and torch's to take back
    "saturated": lambda z, y: losses.cross_entropies(60 * z, y),
}


@pytest.mark.parametrize("loss", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize(("spec", "size"), SPECS, ids=["digits", "colour", "alexnet"])
def test_any_loss_on_the_logits_of_fixed_weights_has_torchs_gradient(spec, size, loss):
    model = build_model(spec, seed=0).requires_grad_(False)
    native = NativeNetwork(model, programs(spec, size))
    images, _ = batch(spec, 5)
    labels = torch.arange(5) % spec.classes
    ours, theirs = (loss_gradient(network, images, loss, labels) for network in (native, model))
    for a, b in zip(ours, theirs, strict=True):
        assert_close([a], [b])
    assert theirs[2].abs().max() > 0


def test_the_size_of_a_micro_batch_changes_nothing_but_rounding():
    images, target = batch(DIGITS, 7)
    results = []
    for size in (4, 5):
        _, native = networks(DIGITS, size)
        _, gradients = native.loss_and_gradients(images, target)
        results.append([*gradients, native.image_gradient(images, target)])
    assert_close(*results)


def test_images_of_an_earlier_batch_leave_no_trace():
    _, native = networks(DIGITS, 4)
    images, target = batch(DIGITS, 5)
    _, first = native.loss_and_gradients(images, target)
    native.loss_and_gradients(*batch(DIGITS, 8, seed=1))
    _, second = native.loss_and_gradients(images, target)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("rule", [plain_gradients, AdversarialWeights(0.05)], ids=["plain", "awp"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["kl", "pgd_at"])
def test_an_objective_has_torchs_terms_and_gradients(objective, rule):
    model, native = networks(DIGITS, 4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images, target = batch(DIGITS, 6)
    adversarial, _ = batch(DIGITS, 6, seed=1)

    def results(network):
        terms, gradients, _ = rule(
            lambda: objective.loss(network, images, adversarial, target), network
        )
        return [term.item() for term in terms if term is not None], gradients

    terms, gradients = results(native)
    expected, expected_gradients = results(model)
    np.testing.assert_allclose(terms, expected, rtol=1e-4)
    assert_close(gradients, expected_gradients)
    assert all(torch.equal(a, b) for a, b in zip(before, native.parameters(), strict=True))


def test_the_ascent_climbs_as_in_torch():
    model, native = networks(DIGITS, 4)
    images, target = batch(DIGITS, 6)
    climbed = [
        Ascent(steps=3)(network, images, images, target, epsilon=0.1) for network in (native, model)
    ]
    torch.testing.assert_close(*climbed)
    assert (climbed[0] - images).abs().max() > 0.05


def test_parameters_that_were_changed_in_place_count():
    model, native = networks(DIGITS, 4)
    images, target = batch(DIGITS, 4)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    before = native.image_gradient(images, target)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = native.image_gradient(images, target)
    assert_close([after], [image_gradient(model, images, target)])
    assert (after - before).abs().max() > 0.01 * before.abs().max()
    with torch.no_grad():
        for parameter, own in zip(model.parameters(), kept, strict=True):
            parameter.copy_(own)
