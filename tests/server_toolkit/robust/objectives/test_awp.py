"""AWP takes its gradient at the worst weights within reach, and leaves the weights as they were."""

import copy

import pytest
import torch

from server_toolkit.robust.objectives.awp import AdversarialWeights
from server_toolkit.robust.objectives.base import plain_gradients
from server_toolkit.robust.objectives.inner import Ascent
from server_toolkit.robust.objectives.mart import Mart
from server_toolkit.robust.objectives.trades import Trades
from tests.server_toolkit.robust.objectives.tiny import ADVERSARIAL, IMAGES, SOFT, curved

GAMMA = 0.05
OBJECTIVES = [Trades(Ascent(1), 6.0), Mart(Ascent(1), 5.0)]


def loss_of(objective, model):
    return lambda: objective.loss(model, IMAGES, ADVERSARIAL, SOFT)


def perturbed_by_hand(objective, model):
    """Return a copy at w + v, v = γ |w| g / |g| for every matrix."""
    _, gradients, _ = plain_gradients(loss_of(objective, model), model)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, g in zip(moved.parameters(), gradients, strict=True):
            if parameter.ndim > 1:
                parameter += GAMMA * (parameter**2).sum().sqrt() / (g**2).sum().sqrt() * g
    return moved


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_and_losses_are_those_at_the_perturbed_weights(objective):
    model = curved()
    terms, gradients, _ = AdversarialWeights(GAMMA)(loss_of(objective, model), model)
    moved = perturbed_by_hand(objective, model)
    expected, at_moved, _ = plain_gradients(loss_of(objective, moved), moved)
    assert terms.total.item() == pytest.approx(expected.total.item(), rel=1e-12)
    for ours, by_hand in zip(gradients, at_moved, strict=True):
        assert torch.allclose(ours, by_hand, rtol=1e-10, atol=1e-12)
    assert expected.total > loss_of(objective, model)().total  # it is an ascent


def test_every_matrix_moves_by_gamma_times_its_norm_and_no_vector_moves():
    model, rule = curved(), AdversarialWeights(GAMMA)
    for parameter in model.parameters():
        v = rule.perturbation(parameter.detach(), torch.randn_like(parameter))
        expected = GAMMA * parameter.norm().item() if parameter.ndim > 1 else 0.0
        assert v.norm().item() == pytest.approx(expected, rel=1e-12)


def test_without_a_gradient_nothing_moves():
    weights = torch.ones(2, 2)
    v = AdversarialWeights(GAMMA).perturbation(weights, torch.zeros(2, 2))
    assert torch.equal(v, torch.zeros(2, 2))


def test_weights_come_back_bit_for_bit_in_single_precision():
    model = curved().float()
    images, adversarial, labels = IMAGES.float(), ADVERSARIAL.float(), SOFT.float()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    AdversarialWeights(GAMMA)(lambda: OBJECTIVES[0].loss(model, images, adversarial, labels), model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_weights_come_back_after_an_error():
    model, calls = curved(), []
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def loss():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return OBJECTIVES[0].loss(model, IMAGES, ADVERSARIAL, SOFT)

    with pytest.raises(KeyboardInterrupt):
        AdversarialWeights(GAMMA)(loss, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
