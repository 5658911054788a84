"""Rounds on the device: only signed tasks are trained, and nothing trained is ever lost."""

import dataclasses
import time

import numpy as np
import pytest

from edge_sdk.agent import local_training
from edge_sdk.agent.store import Store
from edge_sdk.protocol import topics
from edge_sdk.protocol.messages import Status, Task, TrainingSettings, encode_message
from edge_sdk.protocol.signing import create_key, seal
from edge_sdk.protocol.updates import decode_update, encode_weights
from models import layout_of
from models.networks import build_model, flat_parameters

from .conftest import SPEC, has_trained, pump, settle

LAYOUT = layout_of(SPEC)


@pytest.fixture(scope="session")
def program_bytes(tmp_path_factory):
    from edge_sdk.export import training_program

    path = tmp_path_factory.mktemp("program") / "tiny.tsp"
    training_program(SPEC, micro_batch=4).save(path)
    return path.read_bytes()


@pytest.fixture
def task(server, program_bytes):
    base = flat_parameters(build_model(SPEC, seed=0))
    return Task(
        run="test",
        round=0,
        layout=LAYOUT.fingerprint,
        program=server.add_blob(program_bytes),
        base=server.add_blob(encode_weights(base, LAYOUT)),
        training=TrainingSettings(
            epochs=3,
            batch_size=8,
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=0.0,
            proximal_mu=0.0,
            seed=1,
        ),
        encoding="int8",
        issued_at_s=time.time(),
        expires_at_s=time.time() + 3600,
    )


def later(task, round_number):
    return dataclasses.replace(task, round=round_number)


def test_a_signed_task_is_trained_and_its_update_arrives_whole(start, server, task):
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent.store.rounds() == [("test", 0, "accepted")])
    (offer,) = {o.blob.sha256: o for o in server.offers}.values()
    assert (offer.round, offer.samples, offer.steps) == (0, 40, 15)
    assert offer.loss_last < offer.loss_first
    update = decode_update(server.updates[offer.blob.sha256], LAYOUT, "int8")
    assert np.abs(update).max() > 0
    assert agent.store.outbox() == []


@pytest.mark.parametrize("kind", ["stranger", "expired", "garbage", "unsigned"])
def test_nothing_is_trained_without_a_valid_signed_task(start, server, task, tmp_path, kind):
    agent = start()
    if kind == "stranger":
        key = create_key(tmp_path / "stranger.key")
        server.deliver(topics.TASK, seal(encode_message(task), key))
    elif kind == "expired":
        server.broadcast(topics.TASK, dataclasses.replace(task, expires_at_s=1.0))
    elif kind == "garbage":
        server.deliver(topics.TASK, b"\x00\xff" * 100)
    else:
        server.deliver(topics.TASK, encode_message(task))
    settle(agent)
    assert agent.store.rounds() == []
    assert server.chunks_sent == 0


def test_a_round_already_trained_is_not_trained_again(start, server, task):
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent.store.rounds() == [("test", 0, "accepted")])
    agent.close()
    offers = len(server.offers)
    agent = start()
    server.broadcast(topics.TASK, task)
    settle(agent)
    assert len(server.offers) == offers


def test_an_older_round_than_the_last_is_not_trained(start, server, task):
    agent = start()
    server.broadcast(topics.TASK, later(task, 4))
    pump(agent, lambda: has_trained(agent.store, "test", 4))
    server.broadcast(topics.TASK, later(task, 3))
    settle(agent)
    assert not has_trained(agent.store, "test", 3)


def test_an_unsent_update_survives_a_kill_and_is_sent_with_the_same_bytes(
    start, server, task, device
):
    server.answers_offers = False
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: has_trained(agent.store, "test", 0))
    (item,) = agent.store.outbox()
    agent._jobs.close()
    agent.store._db.close()  # no clean end: as after SIGKILL
    server.answers_offers = True
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent.store.outbox() == [])
    assert list(server.updates) == [item.blob.sha256]


def test_killed_in_training_the_round_is_trained_again_to_the_same_bits(start, server, task):
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent._state() == "train")
    agent.close()
    assert Store(agent.config.state).rounds() == []
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent.store.rounds() == [("test", 0, "accepted")])
    (first,) = server.updates
    settle(agent)
    agent.close()
    for file in agent.config.state.glob("state.db*"):
        file.unlink()
    agent = start()
    server.updates.clear()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent.store.rounds() == [("test", 0, "accepted")])
    assert list(server.updates) == [first]


def test_a_newer_task_replaces_the_one_in_training(start, server, task):
    agent = start()
    long = dataclasses.replace(task.training, epochs=1000)
    server.broadcast(topics.TASK, dataclasses.replace(task, training=long))
    pump(agent, lambda: agent._state() == "train")
    server.broadcast(topics.TASK, later(task, 1))
    pump(agent, lambda: agent.store.rounds() == [("test", 1, "accepted")])


def test_error_feedback_is_carried_into_the_next_round(start, server, task):
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: has_trained(agent.store, "test", 0))
    residual = agent.store.residual("test", LAYOUT.fingerprint)
    assert np.abs(residual).max() > 0
    server.broadcast(topics.TASK, later(task, 1))
    pump(agent, lambda: has_trained(agent.store, "test", 1))
    assert not np.array_equal(residual, agent.store.residual("test", LAYOUT.fingerprint))


@pytest.mark.parametrize("encoding", ["int8", "int4", "topk-0.1"])
def test_what_the_encoding_leaves_out_waits_on_the_disk(start, server, task, encoding):
    def trained(encoding):
        agent = start()
        server.updates.clear()
        server.broadcast(topics.TASK, dataclasses.replace(task, encoding=encoding))
        pump(agent, lambda: agent.store.rounds() == [("test", 0, "accepted")])
        residual = agent.store.residual("test", LAYOUT.fingerprint)
        agent.close()
        for file in agent.config.state.glob("state.db*"):  # the next agent begins anew
            file.unlink()
        (data,) = server.updates.values()
        return decode_update(data, LAYOUT, encoding), residual

    whole, nothing = trained("fp32")
    assert not nothing.any()
    sent, residual = trained(encoding)
    assert np.array_equal(sent.astype(np.float64) + residual, whole.astype(np.float64))
    assert residual.any()


def test_a_task_with_an_encoding_of_tomorrow_is_ignored(start, server, task):
    agent = start()
    message = encode_message(task).replace(b'"encoding":"int8"', b'"encoding":"int2"')
    assert b"int2" in message
    server.deliver(topics.TASK, seal(message, server.key))
    settle(agent)
    assert agent.store.rounds() == []
    assert agent._state() == "idle"
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent.store.rounds() == [("test", 0, "accepted")])


@pytest.mark.parametrize("damage", [b"", b"\0\0\xc0\x7f", None])
def test_damaged_error_feedback_is_done_without(start, server, task, damage):
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: has_trained(agent.store, "test", 0))
    (file,) = agent.config.state.glob("residual-*.f32")
    if damage is None:
        file.unlink()
    else:  # cut short, or full of NaN
        file.write_bytes(damage * LAYOUT.size)
    server.broadcast(topics.TASK, later(task, 1))
    pump(agent, lambda: has_trained(agent.store, "test", 1))
    assert np.isfinite(agent.store.residual("test", LAYOUT.fingerprint)).all()


def test_weights_that_overflow_end_the_round_not_the_agent(start, server, task, monkeypatch):
    def diverged(*_, **__):
        raise ValueError("the update holds NaN or infinity; local training diverged")

    monkeypatch.setattr(local_training, "encode_update", diverged)
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent._jobs.state == "train")
    pump(agent, lambda: agent._state() == "idle")
    assert agent.store.rounds() == []


def test_a_blob_that_never_matches_its_hash_ends_the_round_not_the_agent(start, server, task):
    path, _ = server.blobs[task.base.sha256]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    agent = start()
    server.broadcast(topics.TASK, task)
    settle(agent, quiet_s=1.0)
    assert agent.store.rounds() == []
    assert agent._state() == "idle"


def test_weights_of_another_network_are_refused(start, server, task):
    other = dataclasses.replace(SPEC, width=8)
    weights = encode_weights(flat_parameters(build_model(other, seed=0)), layout_of(other))
    agent = start()
    server.broadcast(topics.TASK, dataclasses.replace(task, base=server.add_blob(weights)))
    settle(agent, quiet_s=1.0)
    assert agent.store.rounds() == []


def test_a_permanently_rejected_update_leaves_the_outbox_with_the_reason(start, server, task):
    from edge_sdk.protocol.messages import Reject

    server.answers_offers = False
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: bool(server.offers))
    sha256 = server.offers[0].blob.sha256
    server.tell(
        Reject(device="cam-01", sha256=sha256, reason="stale", permanent=True, retry_after_s=0)
    )
    pump(agent, lambda: agent.store.outbox() == [])
    assert agent.store.rounds() == [("test", 0, "rejected: stale")]


def test_status_says_what_the_device_is_doing(start, server, task):
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent.store.rounds() == [("test", 0, "accepted")])
    settle(agent)
    states = [m.state for m in server.messages if isinstance(m, Status)]
    assert "train" in states
    assert states[-1] == "idle"


def test_a_message_for_another_device_is_ignored(start, server, task):
    from edge_sdk.protocol.messages import Done

    server.answers_offers = False
    agent = start()
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: bool(server.offers))
    done = Done(device="cam-02", sha256=server.offers[0].blob.sha256, verdict="accepted")
    server.deliver(topics.downlink("cam-01", "msg"), seal(encode_message(done), server.key))
    settle(agent)
    assert len(agent.store.outbox()) == 1


def test_a_round_whose_deadline_moves_on_is_not_begun_anew(start, server, task):
    agent = start()
    task = dataclasses.replace(task, training=dataclasses.replace(task.training, epochs=1000))
    server.broadcast(topics.TASK, task)
    pump(agent, lambda: agent._steps[0] > 0)
    moved = dict(issued_at_s=task.issued_at_s + 1, expires_at_s=task.expires_at_s + 600)
    server.broadcast(topics.TASK, dataclasses.replace(task, **moved))
    pump(agent, lambda: agent._task.issued_at_s > task.issued_at_s)
    assert agent._jobs.state == "train"
    assert not agent._cancel.is_set()


def test_an_older_task_sent_again_does_not_replace_the_newer(start, server, task):
    agent = start()
    server.broadcast(topics.TASK, dataclasses.replace(task, round=4, issued_at_s=time.time()))
    server.broadcast(topics.TASK, dataclasses.replace(task, round=3, issued_at_s=1.0))
    pump(agent, lambda: has_trained(agent.store, "test", 4))
    settle(agent)
    assert not has_trained(agent.store, "test", 3)


def test_an_empty_message_which_nobody_signed_takes_no_task_away(start, server, task):
    agent = start()
    server.broadcast(topics.TASK, task)
    server.deliver(topics.TASK, b"")
    pump(agent, lambda: agent.store.rounds() == [("test", 0, "accepted")])


def test_a_task_that_cannot_be_begun_in_time_is_dropped(start, server, task):
    server.blobs.clear()  # nothing is published any more
    agent = start()
    server.broadcast(topics.TASK, dataclasses.replace(task, expires_at_s=time.time() + 0.5))
    pump(agent, lambda: agent._state() == "fetch")
    pump(agent, lambda: agent._state() == "idle")
