import numpy as np
import pytest

from server_toolkit.rounds.fedavg import federated_average


def flat(*values):
    return np.array(values, np.float32)


def test_known_weighted_mean():
    """By hand: 10 + (1*4 + 3*8) / 4 = 17 and 20 + (1*0 + 3*-4) / 4 = 17."""
    result = federated_average(flat(10, 20), [(1, flat(4, 0)), (3, flat(8, -4))])
    np.testing.assert_array_equal(result, flat(17, 17))
    assert result.dtype == np.float32


def test_small_updates_are_not_lost_beside_large_ones():
    """In float32, 2**24 + 1 is 2**24; the sum must not run in float32."""
    updates = [(1, flat(2.0**24))] + [(1, flat(1.0))] * 4 + [(1, flat(-(2.0**24)))]
    result = federated_average(flat(0), updates)
    np.testing.assert_array_equal(result, flat(4 / 6))


def test_one_update_gives_that_devices_weights():
    rng = np.random.default_rng(0)
    base = rng.normal(size=100).astype(np.float32)
    update = rng.normal(size=100).astype(np.float32)
    np.testing.assert_array_equal(federated_average(base, [(7, update)]), base + update)


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="no update"):
        federated_average(flat(1), [])
