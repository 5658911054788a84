"""A piece that was interrupted at its checkpoints ends as one that was not."""

import time
from dataclasses import replace

import numpy as np
import pytest

from server_toolkit.benchmark import federate, workplace
from server_toolkit.benchmark.piece import in_order
from server_toolkit.benchmark.presets import PRESETS
from server_toolkit.benchmark.robustness import plan_benchmark
from server_toolkit.benchmark.store import Store
from server_toolkit.benchmark.work import perform
from server_toolkit.benchmark.workplace import OutOfTimeError, Workshop
from server_toolkit.rounds.between import BetweenRounds
from server_toolkit.rounds.schedule import Schedule
from tests.server_toolkit.benchmark.made_up import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    preset = PRESETS["tiny"]
    schedule = Schedule(harden=((1, 3),), distil=(2,))
    plan = plan_benchmark(
        tiny(
            arms=("trajsyn_server_set",),
            partitions={"dirichlet:0.5": (2,)},
            fleet=replace(preset.fleet, rounds=4),
            recipe=replace(preset.recipe, schedule=schedule, between=BetweenRounds(early_steps=3)),
        ),
        directory=None,
    )
    workshop = Workshop(directory=tmp_path_factory.mktemp("whole"), sources=plan.sources)
    pieces = in_order(cell.evaluation for cell in plan.cells if cell.arm.role == "method")
    for piece in pieces:
        perform(piece, workshop)
    return plan, pieces, Store(workshop.directory)


def test_time_that_is_up_loses_nothing(finished, tmp_path, monkeypatch):
    plan, pieces, whole = finished
    hurried = Workshop(directory=tmp_path, sources=plan.sources, stop_at_s=time.monotonic())
    calm = Workshop(directory=tmp_path, sources=plan.sources)
    interrupted = []
    for piece in pieces:
        try:
            perform(piece, hurried)
        except OutOfTimeError:
            interrupted.append(piece.kind)
            assert list((tmp_path / "checkpoints").glob(f"{piece.key}.*"))
            perform(piece, calm)
        assert not list((tmp_path / "checkpoints").glob(f"{piece.key}.*"))
    assert set(interrupted) == {"federate", "proxy", "harden", "evaluate"}
    for piece in pieces:
        ours, theirs = Store(tmp_path).tensors(piece), whole.tensors(piece)
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            assert np.array_equal(ours[name], array), (piece.kind, name)


def test_seconds_of_interrupted_work_are_counted(finished, tmp_path):
    plan, pieces, _ = finished
    place = workplace.Workplace(pieces[0], Workshop(directory=tmp_path, sources=plan.sources))
    place.store.note_spent(pieces[0], 5.0, 9.0)
    again = workplace.Workplace(pieces[0], Workshop(directory=tmp_path, sources=plan.sources))
    cpu_s, wall_s = again.spent()
    assert 5 <= cpu_s < 6
    assert 9 <= wall_s < 10


def test_device_cost_counts_a_pass_for_every_attack_step(finished):
    _, pieces, store = finished
    rounds = pieces[0]
    assert rounds.kind == "federate"
    fleet = rounds.settings["fleet"]
    values = store.record(rounds).values
    assert rounds.settings["rounds"] == [0, 1]
    assert values["passes"] == fleet["images"] * fleet["epochs"]
    result = type("Round", (), {"clients": []})()
    client = type("Client", (), {"samples": 10, "data": b"123"})()
    client.local = type("Local", (), {"cpu_s": 0.5})()
    result.clients = [client, client]
    totals = {"passes": 0, "device_cpu_s": 0.0, "bytes_up": 0}
    federate._count(result, totals, epochs=2, attack_steps=7)
    assert totals == {"passes": 2 * 10 * 2 * 8, "device_cpu_s": 1.0, "bytes_up": 6}


def test_every_device_image_is_on_one_device(finished):
    plan, pieces, store = finished
    place = workplace.Workplace(
        pieces[0], Workshop(directory=store.directory, sources=plan.sources)
    )
    shards = federate.shards_of(place)
    assert sum(map(len, shards)) == pieces[0].settings["data"]["device_images"]


def test_what_autoattack_leaves_is_right_clean_and_under_pgd(finished):
    _, pieces, store = finished
    tensors = store.tensors(pieces[-1])
    judged = len(tensors["autoattack"])
    assert judged == pieces[-1].settings["judging"]["autoattack_images"]
    assert not (tensors["autoattack"] & ~tensors["pgd"][:judged]).any()
    assert not (tensors["pgd"] & ~tensors["clean"]).any()
