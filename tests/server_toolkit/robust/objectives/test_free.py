"""Free training: weights and perturbation move by the same backward pass, step by step."""

import numpy as np
import torch
from torch import nn

from server_toolkit.robust.objectives.awp import AdversarialWeights
from server_toolkit.robust.objectives.base import plain_gradients
from server_toolkit.robust.objectives.free import Free
from tests.server_toolkit.robust.objectives.tiny import IMAGES, SOFT, curved, generator

EPSILON, RATE = 0.1, 0.5


def take(free, model, images, labels, *, epsilon=EPSILON, rule=plain_gradients):
    return free.step(model, images, labels, epsilon=epsilon, generator=generator(), rule=rule)


def softmax(z):
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_a_sequence_over_two_batches_is_softmax_regression_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False)).double()
    W = model[1].weight.detach().numpy().copy()
    delta, free = np.zeros((2, 3)), Free(replays=2)
    first, second = IMAGES.view(2, 3).numpy(), IMAGES.view(2, 3).numpy()[::-1].copy()
    q = SOFT.numpy()
    for x in (first, first, second, second):
        images = torch.from_numpy(x).view(2, 1, 1, 3)
        _, (gradient,) = take(free, model, images, SOFT)
        # The same in numpy: both derivatives of the mean cross-entropy at clamp(x + δ).
        inside = (x + delta > 0) & (x + delta < 1)
        attacked = np.clip(x + delta, 0, 1)
        residual = (softmax(attacked @ W.T) - q) / 2
        dW, ddelta = residual.T @ attacked, (residual @ W) * inside
        np.testing.assert_allclose(gradient.numpy(), dW, atol=1e-12)
        delta = np.clip(delta + EPSILON * np.sign(ddelta), -EPSILON, EPSILON)
        held = free.state()["perturbation"].numpy().reshape(2, 3)
        np.testing.assert_allclose(held, delta, atol=1e-12)
        W -= RATE * dW
        with torch.no_grad():
            model[1].weight.sub_(RATE * gradient)
    assert np.abs(delta).max() > 0


def test_the_first_step_trains_on_clean_images():
    model = curved()
    terms, _ = take(Free(replays=2), model, IMAGES, SOFT)
    expected = nn.functional.cross_entropy(model(IMAGES), SOFT)
    assert terms.adversarial.item() == expected.item()
    assert terms.clean is None


def test_state_carries_the_perturbation_over():
    model, one, other = curved(), Free(replays=2), Free(replays=2)
    take(one, model, IMAGES, SOFT)
    other.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    kept, carried = (take(free, model, IMAGES, SOFT) for free in (one, other))
    assert kept.terms.total.item() == carried.terms.total.item()
    anew = take(Free(replays=2), model, IMAGES, SOFT)
    assert anew.terms.total.item() != kept.terms.total.item()


def test_perturbation_shrinks_with_epsilon():
    model, free = curved(), Free(replays=2)
    take(free, model, IMAGES, SOFT, epsilon=0.2)
    take(free, model, IMAGES, SOFT, epsilon=0.05)
    assert free.state()["perturbation"].abs().max().item() == 0.05


def test_weights_may_be_perturbed_too():
    model = curved()
    plain = take(Free(replays=2), model, IMAGES, SOFT)
    worse = take(Free(replays=2), model, IMAGES, SOFT, rule=AdversarialWeights(0.05))
    assert worse.terms.total > plain.terms.total
