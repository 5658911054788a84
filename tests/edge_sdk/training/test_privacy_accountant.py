import itertools
import math

import pytest
from opacus.accountants import RDPAccountant

from edge_sdk.errors import ConfigError
from edge_sdk.training.privacy_accountant import ORDERS, NoisySteps, epsilon_spent

AGREEMENT = 1e-8  # of opacus' epsilon; both sum series in float64


def opacus(history, delta):
    accountant = RDPAccountant()
    accountant.history = [(h.noise_multiplier, h.sampling_rate, h.steps) for h in history]
    return accountant.get_epsilon(delta)


@pytest.mark.filterwarnings("ignore:Optimal order is the")
@pytest.mark.parametrize("noise", [0.4, 0.7, 1.0, 1.5, 4.0, 20.0])
@pytest.mark.parametrize("rate", [0.001, 0.02, 0.1, 0.5, 0.9, 1.0])
def test_epsilon_equals_opacus_over_a_grid(noise, rate):
    for steps, delta in itertools.product((1, 100, 5000), (1e-3, 1e-5)):
        history = [NoisySteps(noise, rate, steps)]
        truth = opacus(history, delta)
        assert epsilon_spent(history, delta=delta) == pytest.approx(truth, rel=AGREEMENT)


def test_rounds_with_different_settings_add_up_as_in_opacus():
    history = [NoisySteps(1.1, 0.05, 40), NoisySteps(0.8, 0.1, 25), NoisySteps(1.1, 0.05, 40)]
    together = epsilon_spent(history, delta=1e-5)
    assert together == pytest.approx(opacus(history, 1e-5), rel=AGREEMENT)
    assert together > max(epsilon_spent([h], delta=1e-5) for h in history)
    split = [NoisySteps(1.0, 0.1, 1)] * 30
    whole = epsilon_spent([NoisySteps(1.0, 0.1, 30)], delta=1e-5)
    assert epsilon_spent(split, delta=1e-5) == pytest.approx(whole, rel=1e-12)


def test_without_sampling_it_is_the_gaussian_mechanism_in_closed_form():
    """alpha / (2 sigma^2) at each order, then theorem 21 of Balle et al."""
    truth = min(
        7 * a / (2 * 3.0**2) + math.log((a - 1) / a) - (math.log(1e-4) + math.log(a)) / (a - 1)
        for a in ORDERS
    )
    found = epsilon_spent([NoisySteps(3.0, 1.0, 7)], delta=1e-4)
    assert found == pytest.approx(truth, rel=1e-12)


def test_one_step_at_order_two_has_its_closed_form():
    """A = 1 + q^2 (exp(1 / sigma^2) - 1)."""
    from edge_sdk.training.privacy_accountant import _divergence

    for rate, noise in itertools.product((0.01, 0.3), (0.2, 1.0, 6.0)):
        truth = math.log1p(rate**2 * math.expm1(noise**-2))
        assert _divergence(rate, noise, 2.0) == pytest.approx(truth, rel=1e-9)


def test_no_noise_protects_nothing_and_no_step_tells_nothing():
    assert epsilon_spent([NoisySteps(0.0, 0.1, 1)], delta=1e-5) == math.inf
    assert epsilon_spent([NoisySteps(1e-3, 0.1, 1)], delta=1e-5) > 1e5
    assert epsilon_spent([], delta=1e-5) == 0
    assert epsilon_spent([NoisySteps(0.0, 0.1, 0)], delta=1e-5) == 0


def test_wrong_values_are_refused():
    for values in ((-1.0, 0.1, 1), (math.nan, 0.1, 1), (1.0, 1.1, 1), (1.0, 0.1, -1)):
        with pytest.raises(ConfigError, match="noise multiplier"):
            NoisySteps(*values)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="delta"):
            epsilon_spent([], delta=delta)
