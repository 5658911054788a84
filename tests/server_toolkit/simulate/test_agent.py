"""The code that a real device runs, beside the simulator, on the same digits."""

import numpy as np
import pytest

from edge_sdk.agent.config import load_config as load_device_config
from edge_sdk.agent.local_training import train_round
from edge_sdk.protocol.messages import BlobRef, Task
from edge_sdk.protocol.signing import create_key
from server_toolkit.config import load_config
from server_toolkit.datasets import load_dataset
from server_toolkit.ledger import Ledger
from server_toolkit.simulate import FederationSettings
from server_toolkit.simulate.plan import SimulationPlan, divide
from tests.server_toolkit.simulate.command import simulate

OPTIONS = {
    "fedavg": ("--momentum", 0.8, "--encoding", "int8"),
    "fedprox": ("--algorithm", "fedprox", "--proximal-mu", 0.1, "--encoding", "topk-0.05"),
}


def device_directory(directory, name, shard):
    directory.mkdir()
    create_key(directory / "device.key")
    create_key(directory / "server.key")
    np.savez(directory / "images.npz", images=shard.pixels, labels=shard.labels)
    (directory / "device.toml").write_text(
        f'device = "{name}"\nstate_directory = "state"\nprivate_key = "device.key"\n'
        'server_public_key = "server.pub"\n[compute]\nniceness = 0\n'
        '[data]\nkind = "npz"\npath = "images.npz"\n'
    )
    return load_device_config(directory / "device.toml")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_real_agent_sends_the_very_bytes_that_the_simulator_recorded(tmp_path, options):
    """Three rounds, two epochs each: updates, losses and error feedback, bit for bit."""
    fleet = tmp_path / "fleet"
    simulate(fleet, "--rounds", 3, "--epochs", 2, *options)
    ledger, settings = Ledger.open(fleet), load_config(fleet / "server.toml").training
    updates = ledger.updates()
    assert len(updates) == 9
    plan = SimulationPlan(
        dataset="digits",
        spec=ledger.spec,
        devices=3,
        partition="iid",
        images=120,
        settings=FederationSettings(),
    )
    shards, residuals = divide(load_dataset("digits"), plan).shards, {}
    devices = {d: device_directory(tmp_path / d, d, shard) for d, shard in shards.items()}
    for update in updates:
        row = ledger.round(update.round)
        task = Task(
            run=ledger.run,
            round=row.number,
            layout=ledger.layout.fingerprint,
            program=ledger.program,
            base=BlobRef(sha256=row.base_sha256, size=row.base_size),
            training=settings.settings,
            encoding=settings.encoding,
            issued_at_s=0.0,
            expires_at_s=1e10,
        )
        trained = train_round(
            task,
            config=devices[update.device],
            program_path=ledger.blobs.path(ledger.program.sha256),
            base_path=ledger.blobs.path(row.base_sha256),
            residual=residuals.get(update.device),
            should_stop=lambda: False,
            progress=lambda step, steps: None,
        )
        residuals[update.device] = trained.residual
        assert trained.data == ledger.blobs.read(update.blob_sha256)
        offer = trained.offer
        facts = ("samples", "steps", "loss_first", "loss_last", "encoding", "base_sha256")
        assert [getattr(offer, f) for f in facts] == [getattr(update, f) for f in facts]
