"""The fleet directory of a simulation: what `init` makes, its devices, its data, its own record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.protocol.signing import public_key_text
from edge_sdk.training.dataset import Dataset
from models.description import to_toml
from server_toolkit.commands.template import SERVER_TOML
from server_toolkit.config import load_config
from server_toolkit.demo.settings import set_values
from server_toolkit.errors import ConfigError
from server_toolkit.ledger import Ledger
from server_toolkit.simulate.plan import Division, SimulationPlan
from server_toolkit.stages.new_run import fill_run_directory, new_directory

RECORD = "simulation.json"
CONFIG = "server.toml"
FORMAT = "trajsyn-simulation-1"


def create_fleet(
    directory: Path, plan: SimulationPlan, division: Division, values: dict[tuple[str, str], Any]
) -> None:
    """Make the directory whole or not at all; `values` are more of its `server.toml`."""
    settings = plan.settings
    with new_directory(directory) as draft:
        text = SERVER_TOML.format(
            name=json.dumps(settings.run),
            rounds=values[("run", "rounds")],
            model=to_toml(plan.spec),
            host=json.dumps("127.0.0.1"),
            port=1883,
            micro_batch=settings.micro_batch,
            precision=json.dumps(plan.precision),
            seed=settings.seed,
        )
        (draft / CONFIG).write_text(text)
        training = {
            ("training", key): getattr(settings, key)
            for key in (
                "epochs", "batch_size", "learning_rate", "momentum", "weight_decay",
                "proximal_mu", "encoding",
            )
        }  # fmt: skip
        set_values(draft / CONFIG, training | {("rounds", "quorum"): 1} | values)
        _save(draft / "test.npz", division.test)
        if division.server_set is not None:
            _save(draft / "server_set.npz", division.server_set)
        fill_run_directory(draft)
        ledger = Ledger.open(draft)
        for device in division.shards:
            # Nobody speaks for a simulated device, so its private key is not kept.
            ledger.add_device(device, public_key_text(Ed25519PrivateKey.generate().public_key()))
        ledger.close()
        (draft / RECORD).write_text(json.dumps(_record(plan, division), indent=1) + "\n")


def continue_fleet(
    directory: Path, plan: SimulationPlan, division: Division, *, rounds: int
) -> None:
    """Check that `directory` holds this very simulation, and raise its number of rounds if told so.

    Raises `ConfigError` naming what differs.
    """
    try:
        found = dict(json.loads((directory / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{directory} holds no simulation that could go on ({error}); choose another --out"
        ) from error
    wanted = json.loads(json.dumps(_record(plan, division)))
    for key in wanted | found:
        if found.get(key) != wanted.get(key):
            raise ConfigError(
                f"{directory} was made with {key} = {found.get(key)!r:.200}, not "
                f"{wanted.get(key)!r:.200}; give the same options, or choose another --out"
            )
    planned = load_config(directory / CONFIG).run.rounds
    if rounds < planned:
        raise ConfigError(f"{directory} has {planned} rounds; more can be asked for, not fewer")
    if rounds > planned:
        set_values(directory / CONFIG, {("run", "rounds"): rounds})


def _record(plan: SimulationPlan, division: Division) -> dict[str, Any]:
    return {"format": FORMAT, **plan.to_dict(), "data_sha256": division.sha256()}


def _save(path: Path, dataset: Dataset) -> None:
    np.savez_compressed(path, images=dataset.pixels, labels=dataset.labels)
