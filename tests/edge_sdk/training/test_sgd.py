import numpy as np
import pytest
import torch

from edge_sdk.training.sgd import SGD

pytestmark = pytest.mark.usefixtures("runtime")


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


def test_a_correction_is_added_to_each_gradient_whatever_its_scale():
    """As if the mean gradient had been larger by it: SCAFFOLD's c - c_i."""
    rng = np.random.default_rng(1)
    correction = rng.normal(size=5).astype(np.float32)
    ours, theirs = np.ones(5, np.float32), np.ones(5, np.float32)
    corrected = SGD([ours], learning_rate=0.1, momentum=0.9, correction=[correction])
    plain = SGD([theirs], learning_rate=0.1, momentum=0.9)
    for count in (4, 7, 2):
        gradient = rng.normal(size=5).astype(np.float32)
        corrected.step([gradient * count], scale=1 / count)
        plain.step([gradient + correction], scale=1.0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_gradients_are_left_zero_for_the_next_sum():
    w, gradient = np.ones(3, np.float32), np.ones(3, np.float32)
    SGD([w], learning_rate=0.5, momentum=0.9).step([gradient], scale=1.0)
    assert not gradient.any()
    assert w == pytest.approx(0.5)


def test_a_large_array_is_stepped_whole_whatever_the_threads():
    from edge_sdk.runtime import set_threads

    rng = np.random.default_rng(0)
    start, gradient = (rng.normal(size=40_001).astype(np.float32) for _ in range(2))
    expected = start - np.float32(0.5) * gradient * np.float32(0.25)
    try:
        for threads in (1, 3):
            set_threads(threads)
            w = start.copy()
            SGD([w], learning_rate=0.5).step([gradient.copy()], scale=0.25)
            np.testing.assert_allclose(w, expected, rtol=1e-6)
    finally:
        set_threads(1)


def test_arrays_that_do_not_fit_are_refused():
    w = np.ones(4, np.float32)
    for gradient in (np.ones(3, np.float32), np.ones(4), np.ones(8, np.float32)[::2]):
        with pytest.raises(ValueError, match=r"expected 4 float32|C-contiguous"):
            SGD([w], learning_rate=0.5).step([gradient], scale=1.0)
