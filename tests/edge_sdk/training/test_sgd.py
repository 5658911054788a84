import numpy as np
import pytest
import torch

from edge_sdk.training.sgd import SGD


def test_steps_equal_torch():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 3)).astype(np.float32)
    reference = torch.nn.Parameter(torch.from_numpy(w.copy()))
    theirs = torch.optim.SGD([reference], lr=0.1, momentum=0.9, weight_decay=0.05)
    ours = SGD([w], learning_rate=0.1, momentum=0.9, weight_decay=0.05)
    for _ in range(20):
        gradient = rng.normal(size=(4, 3)).astype(np.float32)
        reference.grad = torch.from_numpy(gradient.copy())
        theirs.step()
        ours.step([gradient * 4], scale=0.25)
    np.testing.assert_allclose(w, reference.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_proximal_term_follows_its_closed_form():
    """A constant gradient g: w_t - w_0 = -(g / mu) * (1 - (1 - lr * mu) ** t)."""
    start = np.array([1.0, -2.0], np.float32)
    g, mu, rate, w = np.array([0.5, -3.0], np.float32), 2.0, 0.1, start.copy()
    optimizer = SGD([w], learning_rate=rate, proximal_mu=mu)
    for t in range(1, 8):
        optimizer.step([g.copy()], scale=1.0)
        expected = start - g / mu * (1 - (1 - rate * mu) ** t)
        np.testing.assert_allclose(w, expected, rtol=1e-5)


def test_gradients_are_left_zero_for_the_next_sum():
    w, gradient = np.ones(3, np.float32), np.ones(3, np.float32)
    SGD([w], learning_rate=0.5, momentum=0.9).step([gradient], scale=1.0)
    assert not gradient.any()
    assert w == pytest.approx(0.5)
