"""Statistics and windows on trajectories whose answer is known."""

import math

import numpy as np
import pytest

from server_toolkit.distill.segments import Trajectories
from server_toolkit.distill.windows import choose_window, curriculum_end, round_statistics
from server_toolkit.errors import DistillationError

SIZE = 4000


def path_of(steps):
    """Return the weights before and after each step, rounds from 0."""
    zero = np.zeros(SIZE)
    points = np.concatenate([[zero], np.cumsum(steps, axis=0)])
    return {t: point.astype(np.float32) for t, point in enumerate(points)}


def direction(seed):
    vector = np.random.default_rng(seed).normal(size=SIZE)
    return vector / np.linalg.norm(vector)


def test_a_straight_path_has_turn_1_and_full_trust():
    steps = [length * direction(0) for length in (3.0, 2.0, 1.0)]
    found = round_statistics(Trajectories(path_of(steps)))
    assert [s.length for s in found] == pytest.approx([3, 2, 1], rel=1e-5)
    assert [s.turn for s in found] == [pytest.approx(1), pytest.approx(1), None]
    assert [s.trust for s in found] == pytest.approx([1, 1, 1], rel=1e-5)
    assert [s.score for s in found] == pytest.approx([3, 2, 1], rel=1e-5)


def test_signal_and_trust_are_those_of_the_formula():
    # Two devices: mean (3, 0), each 1 away from it along the second axis.
    # spread² = (1 + 1) / (2 - 1) = 2; signal = 3 / √2; trust = 1 − 2 / (2 · 9).
    def vector(*values):
        return np.array(values, np.float32)

    paths = {"a": {0: vector(13, 1)}, "b": {0: vector(13, -1)}}
    trajectories = Trajectories({0: vector(10, 0), 1: vector(13, 0)}, paths)
    (found,) = round_statistics(trajectories)
    assert found.devices == 2
    assert found.signal == pytest.approx(3 / math.sqrt(2))
    assert found.trust == pytest.approx(1 - 1 / 9)
    assert found.score == pytest.approx(3 * (1 - 1 / 9))


def test_a_hardening_between_rounds_is_no_movement_of_the_fleet():
    path = path_of([direction(0), direction(0)])
    hardened = {**path, 1: path[1] + np.float32(5)}
    hardened[2] = hardened[1] + (path[2] - path[1])
    found = round_statistics(Trajectories(hardened, unhardened={1: path[1]}))
    assert [s.length for s in found] == pytest.approx([1, 1], rel=1e-4)


def test_auto_ends_where_the_path_becomes_a_random_walk():
    straight = [direction(0)] * 4
    walk = [direction(seed) for seed in range(1, 7)]
    window = choose_window("auto", Trajectories(path_of(straight + walk)))
    assert (window.first, window.last) in ((0, 3), (0, 4))  # round 4 has one straight neighbour


def test_auto_begins_behind_a_noisy_start():
    walk = [direction(seed) for seed in range(1, 6)]
    window = choose_window("auto", Trajectories(path_of(walk + [direction(0)] * 5)))
    assert window.first in (4, 5)
    assert window.last == 9


def test_auto_trusts_the_devices_rather_than_the_turns():
    # The fleet goes straight on, but from round 3 its devices share nothing: their mean is noise.
    path = path_of([direction(0)] * 6)
    devices = {}
    for device in range(4):
        devices[f"d{device}"] = {
            t: (path[t] + (direction(0) if t < 3 else 2 * direction(10 * t + device))).astype(
                np.float32
            )
            for t in range(6)
        }
    window = choose_window("auto", Trajectories(path, devices))
    assert (window.first, window.last) == (0, 2)


def test_auto_leaves_out_what_is_short():
    steps = [length * direction(0) for length in (8, 6, 3, 1, 0.5, 0.2)]
    window = choose_window("auto", Trajectories(path_of(steps)))
    assert (window.first, window.last) == (0, 2)


@pytest.mark.parametrize(("kind", "expected"), [("early", (0, 2)), ("late", (6, 8))])
def test_early_and_late_are_thirds(kind, expected):
    trajectories = Trajectories(path_of([direction(seed) for seed in range(9)]))
    window = choose_window(kind, trajectories)
    assert (window.first, window.last) == expected


def test_one_round_is_every_window():
    trajectories = Trajectories(path_of([direction(0)]))
    for kind in ("early", "late", "auto"):
        window = choose_window(kind, trajectories)
        assert (window.first, window.last) == (0, 0)


def test_without_movement_there_is_nothing_to_choose():
    still = Trajectories(path_of([np.zeros(SIZE)]))
    with pytest.raises(DistillationError, match="two rounds in a row"):
        choose_window("auto", still)


def test_a_curriculum_grows_linearly_to_the_whole_window():
    ends = [
        curriculum_end(first=2, last=11, rounds=2, until=0.5, done=done)
        for done in (0, 0.1, 0.25, 0.49, 0.5, 0.99)
    ]
    assert ends == [3, 4, 7, 10, 11, 11]
    assert curriculum_end(first=0, last=5, rounds=0, until=0.5, done=0) == 5
    assert curriculum_end(first=0, last=5, rounds=9, until=0.5, done=0) == 5
