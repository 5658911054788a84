"""Rounds of a simulated federation: local training, updates as they travel, the new average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_sdk.protocol.updates import decode_update, encode_update
from edge_sdk.runtime import ProgramFile
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.round_seed import round_seed
from models import ModelSpec, layout_of
from models.layout import Flat
from server_toolkit.errors import ConfigError
from server_toolkit.rounds.fedavg import federated_average
from server_toolkit.simulate.local import LocalEngine, LocalJob, LocalResult
from server_toolkit.simulate.native import NativeEngine
from server_toolkit.simulate.settings import FederationSettings


@dataclass(frozen=True)
class ClientUpdate:
    """What one device sent: `data` as it travels, `update` as the server decodes it."""

    device: str
    samples: int
    data: bytes
    update: Flat
    local: LocalResult


@dataclass(frozen=True)
class RoundResult:
    """The weights that a round gave, and the updates they are the average of."""

    round: int
    weights: Flat
    clients: tuple[ClientUpdate, ...]

    @property
    def updates(self) -> list[tuple[int, Flat]]:
        """Samples and decoded update of every device that counted, by device id."""
        return [(client.samples, client.update) for client in self.clients]


class Federation:
    """`len(shards)` devices and their server."""

    def __init__(
        self,
        spec: ModelSpec,
        shards: Sequence[Dataset],
        settings: FederationSettings,
        *,
        program: ProgramFile | None = None,
        attack_program: ProgramFile | None = None,
    ) -> None:
        if not shards:
            raise ConfigError("a federation needs at least one device")
        self.spec, self.layout, self.settings = spec, layout_of(spec), settings
        self.devices = device_names(len(shards))
        self._shards = {d: s.fit_to(spec) for d, s in zip(self.devices, shards, strict=True)}
        self._residuals: dict[str, Flat] = {}
        self._engine = _engine(spec, settings, program, attack_program)

    def run_round(self, weights: Flat, round: int) -> RoundResult:
        """Return what the round makes of `weights`, flat float32.

        The same weights, round, settings and state give the same bits.
        """
        settings = self.settings
        jobs = [
            LocalJob(
                device,
                weights,
                dataset,
                round_seed(settings.seed, run=settings.run, device=device, round=round),
            )
            for device, dataset in self._shards.items()
        ]
        results = self._engine.train(jobs)
        clients = [
            self._send(job, result, weights) for job, result in zip(jobs, results, strict=True)
        ]
        average = federated_average(weights, [(c.samples, c.update) for c in clients])
        return RoundResult(round, average, tuple(clients))

    def _send(self, job: LocalJob, result: LocalResult, base: Flat) -> ClientUpdate:
        """Encode the update with what the device's last one left out."""
        encoding = self.settings.encoding
        try:
            encoded = encode_update(
                result.weights - base,
                self.layout,
                encoding,
                residual=self._residuals.get(job.device),
            )
        except ValueError as error:
            raise ConfigError(f"{job.device}: {error}") from error
        self._residuals[job.device] = encoded.residual
        update = decode_update(encoded.data, self.layout, encoding)
        return ClientUpdate(job.device, len(job.dataset), encoded.data, update, result)


def device_names(count: int) -> tuple[str, ...]:
    """Return ids whose alphabetical order, the ledger's, is their order."""
    digits = max(len(str(count - 1)), 2)
    return tuple(f"device-{index:0{digits}}" for index in range(count))


def _engine(
    spec: ModelSpec,
    settings: FederationSettings,
    program: ProgramFile | None,
    attack_program: ProgramFile | None,
) -> LocalEngine:
    from edge_sdk.export import attack_program as export_attack
    from edge_sdk.export import training_program

    program = program or training_program(spec)
    if settings.objective == "pgd" and attack_program is None:
        attack_program = export_attack(spec, micro_batch=program.micro_batch)
    return NativeEngine(settings, program, attack_program if settings.objective == "pgd" else None)
