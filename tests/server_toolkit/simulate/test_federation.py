import numpy as np
import pytest

from server_toolkit.errors import ConfigError
from server_toolkit.rounds.fedavg import federated_average
from server_toolkit.simulate import Federation, FederationSettings
from tests.server_toolkit.simulate.fleets import CONVNET, first_weights, images, shards

SIZES = (12, 7, 20, 9)


@pytest.fixture
def federation(programs):
    def make(**options):
        settings = FederationSettings(batch_size=4, **options)
        return Federation(CONVNET, shards(CONVNET, *SIZES), settings, **programs[CONVNET])

    return make


def test_rounds_repeat_bit_for_bit_and_differ_from_each_other(federation):
    start = first_weights(CONVNET)
    one, same = (federation().run_round(start, 0) for _ in range(2))
    assert (one.weights == same.weights).all()
    assert [c.data for c in one.clients] == [c.data for c in same.clients]
    others = [federation().run_round(start, 1), federation(seed=1).run_round(start, 0)]
    assert all((one.weights != other.weights).any() for other in others)


def test_the_weights_are_the_average_of_the_updates_as_they_travel(federation):
    start = first_weights(CONVNET)
    result = federation(encoding="int4").run_round(start, 0)
    assert [samples for samples, _ in result.updates] == list(SIZES)
    assert (result.weights == federated_average(start, result.updates)).all()


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_federation_goes_on_from_its_state(federation, algorithm):
    options = dict(algorithm=algorithm, encoding="topk-0.05", participation=0.6, late=0.3)
    whole, weights = federation(**options), first_weights(CONVNET)
    for number in range(3):
        weights = whole.run_round(weights, number).weights
    state = {name: vector.copy() for name, vector in whole.state().items()}
    resumed, forgetful = federation(**options), federation(**options)
    resumed.restore(state)
    for number in range(3, 6):
        expected = whole.run_round(weights, number)
        found, other = (f.run_round(weights, number) for f in (resumed, forgetful))
        assert (found.weights == expected.weights).all()
        assert (other.weights != expected.weights).any()
        weights = expected.weights


def test_what_an_update_leaves_out_comes_with_the_next(federation):
    """The decoded updates and the last remainder add up to what was trained: nothing is lost."""
    made, weights = federation(encoding="topk-0.05"), first_weights(CONVNET)
    trained, received = 0.0, 0.0
    for number in range(4):
        result = made.run_round(weights, number)
        trained = trained + (result.clients[2].local.weights - weights)
        received = received + result.clients[2].update
        weights = result.weights
    left = made.state()[f"residual/{made.devices[2]}"]
    assert np.abs(left).max() > 1e-3
    np.testing.assert_allclose(received + left, trained, rtol=0, atol=1e-5)


def test_late_devices_train_and_do_not_count(federation):
    made, weights, seen = federation(late=0.5, never=0.2), first_weights(CONVNET), set()
    for number in range(6):
        result = made.run_round(weights, number)
        counted = {c.device for c in result.clients}
        late = {c.device for c in result.late}
        assert counted
        assert not counted & late
        assert (result.weights == federated_average(weights, result.updates)).all()
        seen |= {len(counted), -len(late)}
        weights = result.weights
    assert len(seen) > 3


def test_a_state_of_other_devices_is_refused(federation, programs):
    made = federation()
    with pytest.raises(ConfigError, match="residual/device-09"):
        made.restore({"residual/device-09": first_weights(CONVNET)})
    with pytest.raises(ConfigError, match="residual/device-00"):
        made.restore({"residual/device-00": np.zeros(3, np.float32)})
    with pytest.raises(ConfigError, match="at least one image"):
        Federation(
            CONVNET,
            [images(CONVNET, 0, seed=0)],
            FederationSettings(),
            **programs[CONVNET],
        )


def test_progress_counts_the_devices(federation):
    told = []
    federation(participation=0.75).run_round(
        first_weights(CONVNET), 0, progress=lambda *counts: told.append(counts)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
