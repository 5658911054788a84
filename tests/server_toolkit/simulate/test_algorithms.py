"""Softmax regression, where every step of every algorithm can be computed by hand."""

import numpy as np
import pytest

from server_toolkit.errors import ConfigError
from server_toolkit.simulate import Federation, FederationSettings
from server_toolkit.simulate.participation import attendance
from server_toolkit.simulate.scaffold import path_length
from tests.server_toolkit.simulate.fleets import LINEAR, first_weights, shards

SIZES = (5, 9, 2)
RATE, EPOCHS = 0.3, 4
DATA = shards(LINEAR, *SIZES)


def gradient(weights, dataset):
    """Of the mean cross-entropy of normalised pixels, in float64; weight and bias are flat."""
    x = (dataset.pixels.reshape(len(dataset), -1) / 255 - 0.5) / 0.25
    matrix, bias = weights[:48].reshape(3, 16), weights[48:]
    scores = x @ matrix.T + bias
    chances = np.exp(scores - scores.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    error = (chances - np.eye(3)[dataset.labels]) / len(dataset)
    return np.concatenate([(error.T @ x).ravel(), error.sum(0)])


def local(start, dataset, *, momentum=0.0, mu=0.0, correction=0.0):
    """Full-batch steps of one device."""
    w, velocity = start.copy(), np.zeros_like(start)
    for _ in range(EPOCHS):
        velocity = momentum * velocity + gradient(w, dataset) + mu * (w - start) + correction
        w = w - RATE * velocity
    return w


def average(ends):
    return sum(n * end for n, end in zip(SIZES, ends, strict=True)) / sum(SIZES)


@pytest.fixture(params=["native", "stacked"])
def federation(request, linear_program):
    def make(**changes):
        options = dict(epochs=EPOCHS, batch_size=100, learning_rate=RATE, momentum=0.0)
        settings = FederationSettings(
            **options | {"encoding": "fp32", "engine": request.param, "together": 2} | changes
        )
        return Federation(LINEAR, DATA, settings, program=linear_program)

    return make


def run(federation, rounds):
    weights = first_weights(LINEAR)
    for number in range(rounds):
        weights = federation.run_round(weights, number).weights
    return weights


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedavg(federation, momentum):
    w = first_weights(LINEAR).astype(np.float64)
    for _ in range(3):
        w = average([local(w, d, momentum=momentum) for d in DATA])
    assert_same(run(federation(momentum=momentum), 3), w)


def test_fedprox(federation):
    w = first_weights(LINEAR).astype(np.float64)
    for _ in range(3):
        w = average([local(w, d, mu=0.7) for d in DATA])
    assert_same(run(federation(algorithm="fedprox", proximal_mu=0.7), 3), w)


@pytest.mark.parametrize(
    "options", [{}, {"participation": 0.7, "late": 0.3, "never": 0.1}], ids=["everybody", "some"]
)
def test_scaffold(federation, options):
    """Algorithm 1 of the paper with option II, each device weighted by its examples.

    Only those that answer in time renew their variates.
    """
    w = first_weights(LINEAR).astype(np.float64)
    c, own, missing = np.zeros_like(w), [np.zeros_like(w) for _ in DATA], 0
    made = federation(algorithm="scaffold", **options)
    draw = {"participation": 1.0, "late": 0.0, "never": 0.0} | options
    for number in range(5):
        present = attendance(made.devices, round=number, seed=0, **draw).on_time
        here = [i for i, name in enumerate(made.devices) if name in present]
        missing += len(DATA) - len(here)
        ends = {i: local(w, DATA[i], correction=c - own[i]) for i in here}
        for i in here:
            own[i] = own[i] - c + (w - ends[i]) / (EPOCHS * RATE)
        w = sum(SIZES[i] * ends[i] for i in here) / sum(SIZES[i] for i in here)
        c = average(own)
    assert bool(missing) == bool(options)
    assert_same(run(made, 5), w)
    for name, variate in zip(made.devices, own, strict=True):
        found = made.state().get(f"variate/{name}", np.zeros_like(w))
        np.testing.assert_allclose(found, variate, rtol=0, atol=2e-5)


def test_scaffold_does_not_leave_the_optimum_and_fedavg_does(federation):
    """At the minimum of the common loss, with variates that are the local gradients there."""
    everyone = np.float64(0)
    w = first_weights(LINEAR).astype(np.float64)
    for _ in range(1500):
        everyone = average([gradient(w, d) + 0.2 * w for d in DATA])
        w -= 0.3 * everyone
    assert np.abs(everyone).max() < 1e-9
    start = w.astype(np.float32)
    made = federation(algorithm="scaffold", weight_decay=0.2)
    state = {
        f"variate/{name}": (gradient(w, d) + 0.2 * w).astype(np.float32)
        for name, d in zip(made.devices, DATA, strict=True)
    }
    made.restore(state)
    assert np.abs(made.run_round(start, 0).weights - start).max() < 2e-6
    drifted = federation(weight_decay=0.2).run_round(start, 0).weights
    assert np.abs(drifted - start).max() > 1e-3


def test_the_fleets_variate_stays_the_mean_of_the_devices(federation):
    made = federation(
        algorithm="scaffold", participation=0.7, late=0.2, never=0.2, momentum=0.5, encoding="int4"
    )
    weights, moved = first_weights(LINEAR), []
    for number in range(8):
        weights = made.run_round(weights, number).weights
        state = made.state()
        zero = np.zeros_like(weights)
        own = [state.get(f"variate/{name}", zero).astype(np.float64) for name in made.devices]
        np.testing.assert_allclose(state["fleet_variate"], average(own), rtol=0, atol=1e-6)
        moved.append(sum(np.abs(v).max() > 0 for v in own))
    assert moved[-1] == 3
    assert moved[0] < 3


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.0), (7, 0.0), (1, 0.9), (7, 0.9), (50, 0.5)])
def test_path_length_is_how_far_a_constant_gradient_carries(steps, momentum):
    w = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0
        w -= 0.2 * velocity
    assert path_length(steps, learning_rate=0.2, momentum=momentum) == pytest.approx(-w)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "fedprox"}, "needs a proximal_mu"),
        ({"proximal_mu": 0.1}, "nothing else takes one"),
        ({"algorithm": "fedsgd"}, "choose from fedavg"),
        ({"encoding": "int3"}, "encoding 'int3'"),
        ({"participation": 0.0}, "participation is 0"),
        ({"late": 0.6, "never": 0.5}, "at most 1 together"),
        ({"late": -0.1}, "late -0.1"),
        ({"epsilon": 2.0}, "epsilon is 2.0"),
        ({"engine": "gpu"}, "choose from auto, native"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FederationSettings(**options)
