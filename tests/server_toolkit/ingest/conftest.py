import pytest

from tests.server_toolkit.fleet import FakeDevice, coordinator, new_ledger
from tests.server_toolkit.ingest.conversation import Conversation


@pytest.fixture
def ledger(tmp_path):
    """A run whose round 0 is open."""
    ledger = new_ledger(tmp_path / "fleet")
    coordinator(ledger).start(0.0)
    yield ledger
    ledger.close()


@pytest.fixture
def device(ledger):
    return FakeDevice("camera-1").enrol(ledger)


@pytest.fixture
def server(ledger):
    return Conversation(ledger)
