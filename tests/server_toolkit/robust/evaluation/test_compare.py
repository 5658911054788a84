"""Two models on the same images: the interval is that of paired proportions."""

import math

import numpy as np
import pytest

from server_toolkit.robust.evaluation.compare import paired_gain


def masks(*, both, first, second, neither):
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(a), np.array(b)


def test_known_answer():
    gain = paired_gain(*masks(both=50, first=20, second=8, neither=22))
    b, c, n = 20.5 / 102, 8.5 / 102, 102
    half = 1.959963984540054 * math.sqrt((b + c - (b - c) ** 2) / n)
    assert gain.value == pytest.approx(0.12)
    assert (gain.low, gain.high) == (pytest.approx(b - c - half), pytest.approx(b - c + half))
    assert gain.beyond_chance


def test_equal_models_differ_by_chance_only():
    gain = paired_gain(*masks(both=50, first=0, second=0, neither=50))
    assert gain.value == 0
    assert gain.low < 0 < gain.high
    assert not gain.beyond_chance


def test_pairing_sees_what_two_separate_intervals_would_not():
    # 60 and 54 of 100: the Wilson intervals of both overlap widely.
    assert paired_gain(*masks(both=54, first=6, second=0, neither=40)).beyond_chance


def test_a_loss_is_beyond_chance_too():
    gain = paired_gain(*masks(both=40, first=2, second=30, neither=28))
    assert gain.high < 0
    assert gain.beyond_chance


def test_masks_of_other_images_are_refused():
    with pytest.raises(ValueError, match="same images"):
        paired_gain(np.ones(3, bool), np.ones(4, bool))


def test_the_interval_covers_the_truth_in_19_of_20_draws():
    rng = np.random.default_rng(0)
    shares = [0.5, 0.15, 0.05, 0.3]  # both, first, second, neither: the gain is 0.1
    covered, count = 0, 1000
    for _ in range(count):
        both, first, second, neither = rng.multinomial(150, shares)
        gain = paired_gain(*masks(both=both, first=first, second=second, neither=neither))
        covered += gain.low <= 0.1 <= gain.high
    assert 0.93 <= covered / count <= 0.97
