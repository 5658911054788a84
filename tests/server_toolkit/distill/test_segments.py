"""Segments join the weights that their kind says."""

import subprocess
import sys

import numpy as np
import pytest

from server_toolkit.distill.segments import Trajectories, list_segments
from server_toolkit.errors import DistillationError


def vector(value):
    return np.array([value, value], np.float32)


@pytest.fixture
def trajectories():
    # Global weights of round t are t; device a has 10 + t, device b missed round 1.
    return Trajectories(
        global_path={t: vector(t) for t in range(4)},
        device_path={
            "b": {0: vector(20), 2: vector(22)},
            "a": {t: vector(10 + t) for t in range(3)},
        },
    )


def ends(segments):
    return [(s.start[0], s.target[0]) for s in segments]


@pytest.mark.parametrize(
    ("kind", "rounds_ahead", "expected"),
    [
        ("device", 1, [(10, 11), (11, 12)]),
        ("device", 2, [(10, 12), (20, 22)]),
        ("local", 1, [(0, 10), (1, 11), (2, 12), (0, 20), (2, 22)]),
        ("fleet", 1, [(0, 1), (1, 2), (2, 3)]),
        ("fleet", 3, [(0, 3)]),
    ],
)
def test_each_kind_joins_its_own_ends(trajectories, kind, rounds_ahead, expected):
    assert ends(list_segments(trajectories, kind=kind, rounds_ahead=rounds_ahead)) == expected


def test_window_bounds_the_start_round_on_both_sides(trajectories):
    segments = list_segments(trajectories, kind="local", first_round=1, last_round=1)
    assert ends(segments) == [(1, 11)]
    assert segments[0].description == "local a 1"


def test_a_device_that_did_not_move_gives_no_segment():
    trajectories = Trajectories({0: vector(1), 1: vector(2)}, {"a": {0: vector(1)}})
    with pytest.raises(DistillationError, match="local"):
        list_segments(trajectories, kind="local")


@pytest.mark.parametrize(
    ("kind", "rounds_ahead", "says"),
    [("fleet", 9, "9 apart"), ("device", 3, "3 apart"), ("spiral", 1, "fleet"), ("fleet", 0, "1")],
)
def test_error_says_what_is_needed(trajectories, kind, rounds_ahead, says):
    with pytest.raises(DistillationError, match=says):
        list_segments(trajectories, kind=kind, rounds_ahead=rounds_ahead)


@pytest.mark.parametrize(
    ("global_path", "device_path", "says"),
    [
        ({}, {}, "empty"),
        ({0: vector(0), 1: np.zeros(3, np.float32)}, {}, "round 1"),
        ({0: vector(0)}, {"a": {5: vector(np.nan)}}, "device a after round 5"),
        ({0: np.zeros(2)}, {}, "float64"),
    ],
)
def test_weights_that_do_not_fit_are_named(global_path, device_path, says):
    with pytest.raises(DistillationError, match=says):
        Trajectories(global_path, device_path)


def test_listing_segments_loads_no_torch():
    code = "import sys, server_toolkit.distill.segments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
