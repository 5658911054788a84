"""When the pipeline's process is started."""

import subprocess

import pytest

from server_toolkit.ingest.pipeline_child import PipelineChild
from tests.server_toolkit.fleet import FakeDevice, coordinator, new_ledger


@pytest.fixture
def ledger(tmp_path):
    ledger = new_ledger(tmp_path / "fleet")
    yield ledger
    ledger.close()


def test_it_runs_again_after_rounds_that_were_added_later(ledger, monkeypatch):
    started = []
    monkeypatch.setattr(PipelineChild, "_start", lambda self, _between: started.append(self.state))
    device = FakeDevice("camera-1").enrol(ledger)
    ledger.record_pipeline_finished()
    child = PipelineChild(ledger, ledger.directory / "server.toml")
    child.start_if_due()
    assert started == []
    rounds = coordinator(ledger, rounds=1)
    rounds.start(0.0)
    device.record(ledger)
    assert rounds.on_tick(1.0)
    child.start_if_due()
    assert started == ["waiting"]


@pytest.fixture
def child(ledger, monkeypatch):
    """A child whose command line is a shell line that the test sets."""
    popen = subprocess.Popen
    child = PipelineChild(ledger, ledger.directory / "server.toml")
    child.commands = []

    def start(command, **arguments):
        child.commands.append(command)
        return popen(["sh", "-c", child.line], **arguments)

    monkeypatch.setattr(subprocess, "Popen", start)
    yield child
    child.stop()


def run(child, *, between_rounds):
    child.start_if_due(between_rounds=between_rounds)
    child._process.wait()
    return child.poll()


def test_between_rounds_it_hardens_and_is_ready_for_the_next_time(ledger, child):
    child.line = "exit 0"
    assert not run(child, between_rounds=True)
    assert child.state == "waiting"
    assert not ledger.pipeline_finished()
    run(child, between_rounds=False)
    assert child.state == "finished"
    assert ["--between-rounds" in command for command in child.commands] == [True, False]


def test_hardening_that_ends_after_the_last_round_is_not_the_pipeline(ledger, child):
    """The next round opens with the weights, which may be before the child that made them ends."""
    child.line = "exit 0"
    child.start_if_due(between_rounds=True)
    child._process.wait()
    child.poll()
    child.start_if_due()
    assert not ledger.pipeline_finished()
    assert ["--between-rounds" in command for command in child.commands] == [True, False]


def test_it_hardens_between_rounds_that_were_added_after_a_finished_pipeline(ledger, child):
    ledger.record_pipeline_finished()
    child.state, child.line = "finished", "exit 0"
    run(child, between_rounds=True)
    assert len(child.commands) == 1


@pytest.mark.parametrize(("between_rounds", "state"), [(True, "waiting"), (False, "failed")])
def test_a_failure_says_where_its_messages_are(child, caplog, between_rounds, state):
    child.line = "echo broken; exit 5"
    assert run(child, between_rounds=between_rounds) == between_rounds
    assert child.state == state
    assert "exit code 5" in caplog.text
    assert child._log_file.read_text() == "broken\n"
    assert not child.poll()  # it is told once
