"""When the pipeline's process is started."""

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
    monkeypatch.setattr(PipelineChild, "_start", lambda self: started.append(self.state))
    device = FakeDevice("camera-1").enrol(ledger)
    ledger.record_pipeline_finished()
    child = PipelineChild(ledger, ledger.directory / "server.toml")
    child.on_tick()
    assert started == []
    rounds = coordinator(ledger, rounds=1)
    rounds.start(0.0)
    device.record(ledger)
    assert rounds.on_tick(1.0)
    child.on_tick()
    assert started == ["waiting"]
