"""The log holds every step once, whatever happened on the way."""

import json

import pytest

from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden_log import HardenLog
from server_toolkit.robust.harden_state import HardenProgress


def entry(step, **more):
    return HardenProgress(step, 5, 1.5, None, 0.1, 0.02, **more)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_is_a_line_as_soon_as_it_is_done(tmp_path):
    path = tmp_path / "log.jsonl"
    log = HardenLog(path)
    log.append(entry(1))
    assert lines(path) == [
        {
            "step": 1,
            "steps": 5,
            "adversarial_loss": 1.5,
            "clean_loss": None,
            "epsilon": 0.1,
            "learning_rate": 0.02,
            "held_out_accuracy": None,
        }
    ]
    log.append(entry(2, held_out_accuracy=0.5))
    assert [line["held_out_accuracy"] for line in lines(path)] == [None, 0.5]


def test_a_new_run_replaces_the_lines_of_an_old_one(tmp_path):
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        log = HardenLog(path)
        for step in (1, 2):
            log.append(entry(step))
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_steps_taken_twice_are_written_once_at_the_end(tmp_path):
    path = tmp_path / "log.jsonl"
    first, resumed = HardenLog(path), HardenLog(path)
    for log, steps in ((first, (1, 2, 3)), (resumed, (3, 4, 5))):
        for step in steps:
            log.append(entry(step))
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 3, 4, 5]
    resumed.write([entry(step) for step in range(1, 6)])
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        HardenLog(tmp_path / "nowhere" / "log.jsonl").append(entry(1))
