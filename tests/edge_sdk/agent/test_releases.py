"""Installing a release: what is refused, what is undone, and that the old model serves on."""

import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.agent import installer, trial
from edge_sdk.agent.slots import open_slot, slot_directory
from edge_sdk.agent.store import FOREIGN_RELEASES_KEPT, Store
from edge_sdk.agent.trial import run_trial
from edge_sdk.errors import ReleaseError, TrialInterruptedError
from edge_sdk.inference import InstalledModel, active_slot
from edge_sdk.protocol import topics
from edge_sdk.protocol.messages import ReleaseHealth, encode_message
from edge_sdk.protocol.signing import create_key, seal

from .conftest import images_and_labels, make_release, pump, settle


def install(agent, server, release):
    server.broadcast(topics.RELEASE, release)
    count = len(server.reports())
    pump(agent, lambda: len(server.reports()) > count)
    return server.reports()[-1]


def serves(device, version):
    """The active model is this version, runs, and is right about the device's images."""
    model = InstalledModel.open(device)
    images, labels = images_and_labels(20, seed=3)
    right = (model.predict(images).argmax(axis=1) == labels).mean()
    return model.slot.release.version == version and right == 1.0


def test_a_good_release_is_tried_installed_and_reported(start, server, device):
    report = install(start(), server, make_release(server, 1))
    assert (report.verdict, report.active_version) == ("running", 1)
    assert report.local_accuracy == 1.0
    assert report.trial_max_abs_diff < 1e-5
    assert serves(device, 1)


def test_the_next_release_goes_into_the_other_slot(start, server, device):
    agent = start()
    install(agent, server, make_release(server, 1))
    assert active_slot(device) == "A"
    install(agent, server, make_release(server, 2))
    assert active_slot(device) == "B"
    assert serves(device, 2)


def test_an_older_version_is_refused_and_the_newer_serves_on(start, server, device):
    agent = start()
    install(agent, server, make_release(server, 5))
    report = install(agent, server, make_release(server, 4))
    assert report.verdict == "refused"
    assert "not newer" in report.reason
    assert serves(device, 5)


def test_a_release_signed_by_somebody_else_is_refused(start, server, device, tmp_path):
    agent = start()
    install(agent, server, make_release(server, 1))
    stranger = create_key(tmp_path / "stranger.key")
    server.deliver(topics.RELEASE, seal(encode_message(make_release(server, 2)), stranger))
    settle(agent)
    assert agent.store.last_release()[1] == "refused"
    assert "signature" in agent.store.last_release()[2]
    assert serves(device, 1)


@pytest.mark.parametrize("position", [100, -5])
def test_one_flipped_byte_in_the_manifest_is_refused(start, server, device, position):
    agent = start()
    install(agent, server, make_release(server, 1))
    envelope = bytearray(seal(encode_message(make_release(server, 2)), server.key))
    envelope[position] ^= 1
    server.deliver(topics.RELEASE, bytes(envelope))
    settle(agent)
    assert agent.store.last_release()[1] == "refused"
    assert serves(device, 1)


def test_one_flipped_byte_in_the_model_file_is_refused(start, server, device):
    agent = start()
    install(agent, server, make_release(server, 1))
    release = make_release(server, 2, sign=-1)
    path, _ = server.blobs[release.int8.blob.sha256]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = install(agent, server, release)
    assert report.verdict == "refused"
    assert "sha256" in report.reason
    assert serves(device, 1)


def test_outputs_unlike_the_reference_are_refused_before_the_switch(start, server, device):
    agent = start()
    install(agent, server, make_release(server, 1))
    report = install(agent, server, make_release(server, 2, tamper=0.5))
    assert report.verdict == "refused"
    assert "differ from the reference by 0.5" in report.reason
    assert serves(device, 1)


def test_a_model_that_is_bad_on_local_images_is_rolled_back(start, server, device):
    agent = start()
    install(agent, server, make_release(server, 1))
    report = install(agent, server, make_release(server, 2, sign=-1))
    assert (report.verdict, report.active_version) == ("rolled_back", 1)
    assert "accuracy on this device's images is 0.000" in report.reason
    assert serves(device, 1)


def test_a_drop_below_the_model_before_is_rolled_back(start, server, device):
    agent = start()
    install(agent, server, make_release(server, 1))
    lenient = ReleaseHealth(min_accuracy=0.0, max_accuracy_drop=0.1)
    report = install(agent, server, make_release(server, 2, sign=-1, health=lenient))
    assert report.verdict == "rolled_back"
    assert "fell from 1.000 to 0.000" in report.reason


def test_a_first_release_that_is_bad_leaves_no_model(start, server, device):
    report = install(start(), server, make_release(server, 1, sign=-1))
    assert (report.verdict, report.active_version) == ("rolled_back", 0)
    with pytest.raises(ReleaseError, match="no release is installed"):
        InstalledModel.open(device)


def test_a_model_that_cannot_be_loaded_is_refused(start, server, device):
    agent = start()
    install(agent, server, make_release(server, 1))
    release = make_release(server, 2)
    junk = server.add_blob(b"not an ONNX file" * 100)
    file = type(release.int8)(blob=junk, max_abs_diff=1.0)
    report = install(agent, server, make_release(server, 2, int8=file))
    assert report.verdict == "refused"
    assert "cannot be run" in report.reason
    assert serves(device, 1)


def test_an_expired_release_is_refused(start, server):
    report = install(start(), server, make_release(server, 1, expires_at_s=5.0))
    assert report.verdict == "refused"
    assert "expired" in report.reason


def test_a_repeated_release_is_not_installed_twice(start, server):
    agent = start()
    release = make_release(server, 1)
    install(agent, server, release)
    server.broadcast(topics.RELEASE, release)
    settle(agent)
    assert len(server.reports()) == 1
    again = start()
    server.broadcast(topics.RELEASE, release)
    settle(again)
    assert len({r.version for r in server.reports()}) == 1
    assert agent.store.directory == again.store.directory


def test_a_power_cut_before_the_health_check_makes_it_at_the_next_start(start, server, device):
    agent = start()
    install(agent, server, make_release(server, 1))
    agent.close()
    store = Store(device.state)
    store.put(probation_version=1, previous_slot=None, previous_version=0)
    store.close()
    server.messages.clear()
    agent = start()
    pump(agent, lambda: agent.store.get("probation_version") is None)
    settle(agent)
    assert [r.verdict for r in server.reports()][-1] == "running"
    assert serves(device, 1)


def test_a_release_on_probation_that_arrives_again_is_not_refused(start, server, device):
    release = make_release(server, 1)
    agent = start()
    install(agent, server, release)
    agent.close()
    store = Store(device.state)  # as a kill right after the switch leaves it
    store.put(probation_version=1, previous_slot=None, previous_version=0)
    store._db.execute("DELETE FROM releases")
    store.close()
    server.messages.clear()
    agent = start()
    server.broadcast(topics.RELEASE, release)
    pump(agent, lambda: server.reports() and agent.store.get("probation_version") is None)
    settle(agent)
    assert {r.verdict for r in server.reports()} == {"running"}
    assert serves(device, 1)


def test_a_file_that_rots_in_its_slot_is_found_when_it_is_loaded(start, server, device):
    install(start(), server, make_release(server, 1))
    path = slot_directory(device.state, "A") / "model.onnx"
    data = bytearray(path.read_bytes())
    data[30] ^= 4
    path.write_bytes(data)
    with pytest.raises(ReleaseError, match="sha256"):
        open_slot(slot_directory(device.state, "A"), server.key.public_key())


def test_predict_refuses_images_of_another_shape(start, server, device):
    install(start(), server, make_release(server, 1))
    with pytest.raises(ReleaseError, match="expected"):
        InstalledModel.open(device).predict(np.zeros((1, 1, 9, 9), np.float32))


def test_a_newer_release_that_comes_while_one_is_installed_is_installed_next(start, server, device):
    agent = start()
    server.broadcast(topics.RELEASE, make_release(server, 1))
    pump(agent, lambda: agent._state() == "install")
    server.broadcast(topics.RELEASE, make_release(server, 2))
    pump(agent, lambda: [r.version for r in server.reports()] == [1, 2])
    assert serves(device, 2)


def test_a_trial_that_something_else_ends_is_made_again(start, server, device, monkeypatch):
    tries = []

    def killed_once(*arguments, **options):
        tries.append(arguments)
        if len(tries) == 1:
            raise TrialInterruptedError("ended from outside by SIGKILL")
        return run_trial(*arguments, **options)

    monkeypatch.setattr(installer, "run_trial", killed_once)
    monkeypatch.setattr(installer, "PAUSE_BETWEEN_TRIES_S", 0.0)
    assert install(start(), server, make_release(server, 1)).verdict == "running"
    assert serves(device, 1)


def test_a_release_that_could_not_be_tried_gets_another_chance_at_the_next_start(
    start, server, device, monkeypatch
):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    release = make_release(server, 1)
    with monkeypatch.context() as full_disk:
        full_disk.setattr(installer, "fill_slot", no_space)
        agent = start()
        report = install(agent, server, release)
        assert report.verdict == "refused"
        assert "No space left" in report.reason
        settle(agent)
        agent.close()
    assert install(start(), server, release).verdict == "running"


def test_a_child_killed_from_outside_is_no_fault_of_the_model(monkeypatch):
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    code, _, _ = trial._run(command, threading.Event())
    assert code == -signal.SIGKILL
    monkeypatch.setattr(trial, "_run", lambda *_: (code, b"", b""))
    with pytest.raises(TrialInterruptedError, match="SIGKILL"):
        run_trial(Path("device.toml"), "A", "reference", stopping=threading.Event())


def test_a_stop_ends_the_trial_at_once_and_the_release_is_installed_later(start, server, device):
    release = make_release(server, 1)
    agent = start()
    server.broadcast(topics.RELEASE, release)
    pump(agent, lambda: agent._state() == "install")
    agent.close()
    assert server.reports() == []
    assert install(start(), server, release).verdict == "running"


def test_a_flood_of_forged_releases_neither_fills_the_store_nor_forgets_the_real_one(start, server):
    agent = start()
    release = make_release(server, 1)
    install(agent, server, release)
    for number in range(2 * FOREIGN_RELEASES_KEPT):
        server.deliver(topics.RELEASE, b"forged %d" % number)
    server.broadcast(topics.RELEASE, release)
    settle(agent)
    rows = agent.store._db.execute("SELECT version FROM releases").fetchall()
    assert sorted(rows) == [(0,)] * FOREIGN_RELEASES_KEPT + [(1,)]
    assert len(server.reports()) == 1
