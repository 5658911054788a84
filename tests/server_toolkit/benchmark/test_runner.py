import os
import time

import numpy as np
import pytest

from server_toolkit.benchmark import work
from server_toolkit.benchmark.piece import Piece, in_order
from server_toolkit.benchmark.runner import run_pieces
from server_toolkit.benchmark.store import Outcome, Store
from server_toolkit.benchmark.workers import Workers
from server_toolkit.benchmark.workplace import Workshop
from server_toolkit.errors import ConfigError
from server_toolkit.locks import try_lock


def piece(name, *inputs, kind="harden"):
    sources = {f"input{i}": source for i, source in enumerate(inputs)}
    return Piece(kind=kind, settings={"name": name}, inputs=sources, label=name)


class Deadly(Piece):
    """Kills the process that receives it."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.fixture
def done(monkeypatch):
    """Work that only remembers its order; pieces called `bad...` fail."""
    names = []

    def compute(place):
        name = place.piece.settings["name"]
        names.append(name)
        if name.startswith("bad"):
            raise ConfigError("it is bad")
        place.tick()
        for source in place.piece.inputs.values():
            assert place.store.tensors(source)
        return Outcome({"name": name}, {"weights": np.float32([1])})

    monkeypatch.setitem(work.WORK, "harden", compute)
    return names


def run(pieces, directory, *, stop_at_s=None, told=None):
    told = [] if told is None else told
    return run_pieces(
        in_order(pieces),
        Workshop(directory=directory, sources={}, stop_at_s=stop_at_s),
        workers=1,
        progress=lambda *state: told.append(state),
    )


def test_inputs_come_first_and_shared_ones_once(done, tmp_path):
    base = piece("base")
    left, right = piece("left", base), piece("right", base)
    outcome = run([piece("top", left, right), right], tmp_path)
    assert sorted(done, key=done.index) == done
    assert done[0] == "base"
    assert sorted(done) == ["base", "left", "right", "top"]
    assert outcome.complete
    assert not outcome.failed


def test_finished_work_is_not_done_again(done, tmp_path):
    run([piece("a"), piece("b")], tmp_path)
    run([piece("a"), piece("b"), piece("c")], tmp_path)
    assert done == ["a", "b", "c"]


def test_a_failed_piece_stops_what_rests_on_it_and_nothing_else(done, tmp_path):
    bad = piece("bad")
    above = piece("above", bad)
    outcome = run([piece("top", above), piece("other")], tmp_path)
    assert outcome.failed[bad.key] == "ConfigError: it is bad"
    assert outcome.failed[above.key] == "bad failed"
    assert set(done) == {"bad", "other"}
    run([piece("top", above)], tmp_path)
    assert done.count("bad") == 2  # tried again, as the reason may be gone


def test_time_that_is_up_leaves_work_for_the_next_run(done, tmp_path):
    outcome = run([piece("a")], tmp_path, stop_at_s=time.monotonic() - 1)
    assert not outcome.complete
    assert not outcome.failed
    assert done == []


def test_what_only_led_to_others_is_dropped_and_made_again_where_it_is_missed(done, tmp_path):
    base = piece("base")
    middle = piece("middle", base)
    run([piece("top", middle)], tmp_path)
    store = Store(tmp_path)
    assert [store.available(p) for p in (base, middle, piece("top", middle))] == [0, 0, 1]
    run([piece("top", middle)], tmp_path)
    assert done == ["base", "middle", "top"]
    run([piece("other", middle)], tmp_path)
    assert done == ["base", "middle", "top", "base", "middle", "other"]


def test_arrays_stay_as_long_as_somebody_will_read_them(done, tmp_path):
    base = piece("base")
    run([piece("top", base), piece("bad", base)], tmp_path)
    assert Store(tmp_path).available(base)


def test_progress_counts_pieces_and_guesses_the_rest(done, tmp_path):
    told = []
    run([piece("a"), piece("b")], tmp_path, told=told)
    assert [(now, total) for now, total, _ in told] == [(0, 2), (1, 2), (2, 2)]
    assert told[0][2] == "time left unknown"
    assert told[1][2] == "a; under a minute left"
    assert told[2][2] == "b; done"


def test_two_runs_do_not_share_a_directory(done, tmp_path):
    lock = try_lock(tmp_path / "lock")
    with pytest.raises(ConfigError, match="another run is at work"):
        run([piece("a")], tmp_path)
    os.close(lock)
    assert run([piece("a")], tmp_path).complete


def test_a_damaged_result_is_named(done, tmp_path):
    run([piece("a")], tmp_path)
    (file,) = (tmp_path / "pieces").glob("*.json")
    file.write_text('{"record": {}}')
    with pytest.raises(ConfigError, match=f"{file.name}: damaged"):
        Store(tmp_path).record(piece("a"))


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_piece_only(tmp_path):
    deadly = Deadly(kind="proxy", settings={"server_images": 0}, label="deadly")
    harmless = piece("harmless", kind="proxy")  # fails for want of settings, in its worker
    with Workers(2, Workshop(directory=tmp_path, sources={})) as crew:
        crew.give(deadly)
        crew.give(harmless)
        ended = {}
        while len(ended) < 2:
            ended |= {e.piece.label: e.error for e in crew.ended()}
        assert "died with code 9" in ended["deadly"]
        assert ended["harmless"].startswith("KeyError")
        assert crew.free == 2
