"""A fleet directory as the stages see it: models, proxy sets and real images by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.messages import NAME
from edge_sdk.protocol.part_file import sha256_of_file
from edge_sdk.protocol.updates import decode_weights
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.sources import load_npz
from models.layout import Flat
from server_toolkit.config import ServerConfig
from server_toolkit.distill.proxy_set import ProxySet
from server_toolkit.errors import ConfigError, LedgerError
from server_toolkit.ledger import Ledger
from server_toolkit.ledger.schema import Artefact
from server_toolkit.ledger.stage_records import ArtefactKind

FEDAVG = "fedavg"
"""The undefended federated model: the newest aggregate, always there, never a file."""

FOLDERS: Mapping[ArtefactKind, str] = {
    "proxy": "proxy/{}.safetensors",
    "model": "models/{}.safetensors",
    "evaluation": "evaluations/{}.json",
}

Progress = Callable[[int, int, str], None]
"""Called with what is done, the total, and a short text; often."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Workspace:
    """The configuration and ledger of one run, and every file that a stage reads or writes."""

    config: ServerConfig
    ledger: Ledger

    @classmethod
    def open(cls, config: ServerConfig) -> Workspace:
        """Open the ledger beside the configuration.

        Raises `LedgerError`, or `ConfigError` if [model] is not what the ledger was made for.
        """
        ledger = Ledger.open(config.directory)
        if ledger.spec != config.model.spec:
            raise ConfigError(f"{config.file}: [model] is not the model of the run's ledger")
        return cls(config, ledger)

    def path(self, kind: ArtefactKind, name: str) -> Path:
        """Return where an artefact of this name belongs; raises `ConfigError` for a bad name."""
        if not re.fullmatch(NAME, name):
            raise ConfigError(
                f"{name[:80]!r} cannot be a name; use letters, digits, '.', '_' and '-'"
            )
        return self.ledger.directory / FOLDERS[kind].format(name)

    def read(self, kind: ArtefactKind, name: str) -> tuple[Path, Artefact]:
        """Return a recorded file, checked; raises `LedgerError` if it is missing or was changed."""
        row = self.ledger.artefact(kind, name)
        path = self.ledger.directory / row.path
        if not path.is_file() or sha256_of_file(path) != row.sha256:
            raise LedgerError(
                f"{path} is missing or not what the ledger recorded; make {kind} {name} again"
            )
        return path, row

    def made_from(self, kind: ArtefactKind, name: str, lineage: Mapping[str, Any]) -> bool:
        """Say whether the newest artefact of this name was made from exactly this and is whole."""
        try:
            _, row = self.read(kind, name)
        except LedgerError:
            return False
        return bool(row.lineage == as_json(lineage))

    def record(self, kind: ArtefactKind, name: str, lineage: Mapping[str, Any]) -> Path:
        """Record the finished file of this name and return its path."""
        path = self.path(kind, name)
        self.ledger.record_artefact(kind, name, path, as_json(lineage))
        return path

    def checkpoint(self, kind: ArtefactKind, name: str, lineage: Mapping[str, Any]) -> Path:
        """Return the checkpoint file for making exactly this; other inputs have another file."""
        text = json.dumps(as_json(lineage), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = self.path(kind, name)
        path.parent.mkdir(exist_ok=True)
        return path.with_name(f"{name}.{digest}.checkpoint")

    def weights(self, name: str) -> tuple[Flat, str]:
        """Return a model's weights and the sha256 that names them; "fedavg" is the fleet's own."""
        if name == FEDAVG:
            newest = self.ledger.latest_round()
            return self.ledger.aggregate_weights(newest), self.ledger.aggregate_blob(newest).sha256
        path, row = self.read("model", name)
        try:
            return decode_weights(path.read_bytes(), self.ledger.layout), row.sha256
        except ProtocolError as error:
            raise LedgerError(f"{path}: {error}") from error

    def model_lineage(self, name: str) -> dict[str, Any]:
        """Return what a model was made from; "fedavg" has none."""
        return {} if name == FEDAVG else self.ledger.artefact("model", name).lineage

    def proxy(self, name: str) -> tuple[ProxySet, str]:
        """Return a proxy set and its file's sha256."""
        path, row = self.read("proxy", name)
        proxy = ProxySet.load(path)
        if proxy.spec != self.ledger.spec:
            raise LedgerError(f"{path} was made for another network")
        return proxy, row.sha256

    def images(self, path: Path) -> tuple[Dataset, str]:
        """Return the real labelled images of an npz file, fitted to the network, and its sha256.

        Raises `ConfigError` (of `edge_sdk`) naming the file.
        """
        return load_npz(path).fit_to(self.ledger.spec), sha256_of_file(path)

    def server_set_path(self) -> Path | None:
        """Return the configured server set, or None without one."""
        name = self.config.data.server_set
        return None if name is None else self.config.resolve(name)

    def test_set_path(self) -> Path | None:
        """Return the configured test set, or None without one."""
        name = self.config.data.test_set
        return None if name is None else self.config.resolve(name)


def as_json(value: Any) -> Any:
    """Return `value` as the ledger gives it back: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))
