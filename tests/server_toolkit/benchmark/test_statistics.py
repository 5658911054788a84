import math

import numpy as np
import pytest

from server_toolkit.benchmark.statistics import (
    over_seeds,
    paired_over_images,
    pooled,
    worst_class,
)
from server_toolkit.robust.evaluation.accuracy import Accuracy


def test_interval_over_seeds_is_students_t():
    spread = over_seeds([1.0, 2.0, 3.0])
    half = 4.303 / math.sqrt(3)  # deviation 1, two degrees of freedom
    assert spread.mean == 2
    assert spread.interval == pytest.approx((2 - half, 2 + half))


def test_one_seed_has_no_interval():
    assert over_seeds([0.4]).interval is None


def test_interval_for_many_seeds_is_not_narrower_than_the_normal_one():
    values = [0.0, 1.0] * 50
    low, high = over_seeds(values).interval
    deviation = math.sqrt(100 * 0.25 / 99)
    assert high - low >= 2 * 1.96 * deviation / 10


def test_pooling_counts_every_image_of_every_seed():
    together = pooled([Accuracy(1, 10), Accuracy(5, 30)])
    assert (together.correct, together.count) == (6, 40)


def test_worst_class_is_the_worst_over_all_seeds_not_in_any_one():
    seeds = [
        [Accuracy(0, 10), Accuracy(5, 10), Accuracy(0, 0)],
        [Accuracy(10, 10), Accuracy(4, 10), Accuracy(0, 0)],
    ]
    assert worst_class(seeds) == (1, Accuracy(9, 20))


def test_paired_interval_is_that_of_the_mean_of_the_differences():
    ours, theirs = np.array([True, True, False, True]), np.array([True, False, False, False])
    spread = paired_over_images([ours[:2], ours[2:]], [theirs[:2], theirs[2:]])
    half = 1.959964 * np.array([0, 1, 0, 1]).std(ddof=1) / 2
    assert spread.mean == 0.5
    assert spread.interval == pytest.approx((0.5 - half, 0.5 + half))


def test_pairing_cancels_what_is_hard_for_both():
    hard = np.arange(100) < 50
    assert paired_over_images([hard], [hard]).interval == (0, 0)
