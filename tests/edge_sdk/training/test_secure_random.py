import math

import numpy as np
import pytest

from edge_sdk.training.secure_random import BLOCK, SecureRandom


def normal(count, deviation=1.0, seed=1):
    values = np.zeros(count, np.float32)
    SecureRandom(insecure_seed=seed).add_normal(values, deviation)
    return values


def test_noise_is_normal_with_the_asked_deviation():
    values = np.sort(normal(200_000, 3.0) / 3.0).astype(np.float64)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in values])
    ranks = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(cdf - ranks[1:]).max(), np.abs(cdf - ranks[:-1]).max())
    assert distance < 1.95 / math.sqrt(len(values))  # Kolmogorov and Smirnov, 1 in 1000
    assert np.mean(values**4) == pytest.approx(3, rel=0.05)


def test_neighbouring_numbers_and_blocks_do_not_depend_on_each_other():
    values = normal(40 * BLOCK)
    for shift in (1, BLOCK // 2, BLOCK):  # BLOCK // 2: cosine and sine of one angle
        correlation = np.mean(values[shift:] * values[:-shift])
        squares = np.mean((values[shift:] ** 2 - 1) * (values[:-shift] ** 2 - 1)) / 2
        assert abs(correlation) < 4 / math.sqrt(len(values))
        assert abs(squares) < 4 / math.sqrt(len(values))


def test_noise_is_added_to_what_is_there():
    values = np.full(BLOCK + 5, 100, np.float32)
    SecureRandom(insecure_seed=1).add_normal(values, 1.0)
    np.testing.assert_allclose(values, 100 + normal(BLOCK + 5), atol=1e-5)
    assert np.unique(values).size > 0.9 * values.size


def test_each_is_chosen_with_the_probability_by_itself():
    rng = SecureRandom(insecure_seed=2)
    counts = np.zeros(BLOCK + 100)
    sizes = []
    for _ in range(200):
        chosen = rng.choose(len(counts), 0.25)
        assert np.all(np.diff(chosen) > 0)
        counts[chosen] += 1
        sizes.append(len(chosen))
    deviation = math.sqrt(0.25 * 0.75)
    assert abs(counts.mean() / 200 - 0.25) < 4 * deviation / math.sqrt(200 * len(counts))
    assert abs(counts[BLOCK:].mean() / 200 - 0.25) < 4 * deviation / math.sqrt(200 * 100)
    assert np.std(sizes) == pytest.approx(deviation * math.sqrt(len(counts)), rel=0.25)
    assert rng.choose(10, 1.0).tolist() == list(range(10))
    assert rng.choose(10, 0.0).size == 0


def test_only_a_seed_makes_the_numbers_repeat():
    assert normal(100, seed=3).tobytes() == normal(100, seed=3).tobytes()
    assert normal(100, seed=3).tobytes() != normal(100, seed=4).tobytes()
    assert normal(100, seed=None).tobytes() != normal(100, seed=None).tobytes()
