"""Rounds of a simulated federation: local training, updates as they travel, the new average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.protocol.updates import decode_update, encode_update
from edge_sdk.runtime import ProgramFile
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.round_seed import round_seed
from models import ModelSpec, layout_of
from models.layout import Flat
from server_toolkit.errors import ConfigError
from server_toolkit.rounds.fedavg import federated_average
from server_toolkit.simulate.engines import make_engine
from server_toolkit.simulate.local import LocalJob, LocalResult
from server_toolkit.simulate.participation import attendance
from server_toolkit.simulate.scaffold import ControlVariates, path_length
from server_toolkit.simulate.settings import FederationSettings

RESIDUAL, VARIATE, FLEET_VARIATE = "residual/", "variate/", "fleet_variate"


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
    """The weights that a round gave, the updates they are the average of, and those too late.

    Both lists are in the order of the device ids.
    """

    round: int
    weights: Flat
    clients: tuple[ClientUpdate, ...]
    late: tuple[ClientUpdate, ...]

    @property
    def updates(self) -> list[tuple[int, Flat]]:
        """Samples and decoded update of every device that counted."""
        return [(client.samples, client.update) for client in self.clients]


class Federation:
    """`len(shards)` devices, called `devices`, and their server.

    Between rounds it keeps what devices and server keep: error feedback and control variates.
    `program` and `attack_program` are those that real devices would get; they are exported, which
    takes seconds, where the engine needs them and they are not given.
    """

    def __init__(
        self,
        spec: ModelSpec,
        shards: Sequence[Dataset],
        settings: FederationSettings,
        *,
        program: ProgramFile | None = None,
        attack_program: ProgramFile | None = None,
    ) -> None:
        if not shards or not all(len(shard) for shard in shards):
            raise ConfigError("a federation needs devices, each with at least one image")
        self.spec, self.layout, self.settings = spec, layout_of(spec), settings
        self.devices = device_names(len(shards))
        self._shards = {d: s.fit_to(spec) for d, s in zip(self.devices, shards, strict=True)}
        self._residuals: dict[str, Flat] = {}
        self._variates: ControlVariates | None = None
        if settings.algorithm == "scaffold":
            samples = {device: len(shard) for device, shard in self._shards.items()}
            self._variates = ControlVariates(samples, self.layout.size)
        self._engine = make_engine(spec, settings, program=program, attack_program=attack_program)

    def run_round(
        self,
        weights: Flat,
        round: int,
        *,
        progress: Callable[[int, int], None] = lambda _done, _devices: None,
    ) -> RoundResult:
        """Return what the round makes of `weights`, flat float32.

        The same weights, round, settings and `state` give the same bits. `progress` is told how
        many of the round's devices are done. Raises `ConfigError` naming a device that diverges.
        """
        settings = self.settings
        present = attendance(
            self.devices,
            round=round,
            seed=settings.seed,
            participation=settings.participation,
            late=settings.late,
            never=settings.never,
        )
        working = sorted(present.on_time + present.late)
        jobs = [self._job(device, weights, round) for device in working]
        results = self._engine.train(jobs, done=lambda count: progress(count, len(jobs)))
        if self._variates is not None:
            self._variates.renew(
                {
                    device: (weights - result.weights, self._path_length(result.steps))
                    for device, result in zip(working, results, strict=True)
                    if device in present.on_time
                }
            )
        sent = {
            job.device: self._send(job, result) for job, result in zip(jobs, results, strict=True)
        }
        clients = tuple(sent[device] for device in present.on_time)
        average = federated_average(weights, [(c.samples, c.update) for c in clients])
        return RoundResult(round, average, clients, tuple(sent[d] for d in present.late))

    def state(self) -> dict[str, Flat]:
        """Return, as flat vectors by name, what the next round needs beside the weights."""
        state = {RESIDUAL + device: r for device, r in self._residuals.items()}
        if self._variates is not None:
            state |= {VARIATE + device: v for device, v in self._variates.device.items()}
            state[FLEET_VARIATE] = self._variates.fleet
        return state

    def restore(self, state: Mapping[str, Flat]) -> None:
        """Go back to where `state` was taken; raises `ConfigError` for one of other devices."""
        known = set(map(RESIDUAL.__add__, self.devices))
        if self._variates is not None:
            known |= {FLEET_VARIATE, *map(VARIATE.__add__, self.devices)}
        for name, vector in state.items():
            fits = vector.shape == (self.layout.size,) and vector.dtype == np.float32
            if name not in known or not fits:
                raise ConfigError(f"{name} {vector.shape} is no state of this federation")
        self._residuals = _with_prefix(state, RESIDUAL)
        if self._variates is not None:
            self._variates.device = _with_prefix(state, VARIATE)
            self._variates.fleet = state.get(FLEET_VARIATE, np.zeros(self.layout.size, np.float32))

    def _job(self, device: str, weights: Flat, round: int) -> LocalJob:
        settings = self.settings
        return LocalJob(
            device=device,
            start=weights,
            dataset=self._shards[device],
            seed=round_seed(settings.seed, run=settings.run, device=device, round=round),
            correction=None if self._variates is None else self._variates.correction(device),
        )

    def _send(self, job: LocalJob, result: LocalResult) -> ClientUpdate:
        """Encode the update with what the device's last one left out, as an agent does."""
        encoding, residual = self.settings.encoding, self._residuals.pop(job.device, None)
        try:
            encoded = encode_update(
                result.weights - job.start, self.layout, encoding, residual=residual
            )
        except ValueError as error:
            raise ConfigError(f"{job.device}: {error}") from error
        if encoding != "fp32":  # it leaves nothing out
            self._residuals[job.device] = encoded.residual
        update = decode_update(encoded.data, self.layout, encoding)
        return ClientUpdate(job.device, len(job.dataset), encoded.data, update, result)

    def _path_length(self, steps: int) -> float:
        settings = self.settings
        return path_length(steps, learning_rate=settings.learning_rate, momentum=settings.momentum)


def device_names(count: int) -> tuple[str, ...]:
    """Return ids whose alphabetical order, the ledger's, is their order."""
    digits = max(len(str(count - 1)), 2)
    return tuple(f"device-{index:0{digits}}" for index in range(count))


def _with_prefix(state: Mapping[str, Flat], prefix: str) -> dict[str, Flat]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
