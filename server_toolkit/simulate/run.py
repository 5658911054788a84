"""The rounds of a simulation in a ledger, as a server would have written it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.protocol.messages import BlobRef, Offer
from models.layout import Flat
from server_toolkit.distill.tensor_file import read_tensor_file, write_tensor_file
from server_toolkit.errors import LedgerError
from server_toolkit.ledger import Ledger, schema
from server_toolkit.rounds.coordinator import Coordinator
from server_toolkit.simulate.federation import ClientUpdate, Federation
from server_toolkit.stages.pipeline import run_between_rounds
from server_toolkit.stages.workspace import Progress, Workspace

FOLDER = "simulation"
DEADLINE_S = 0.0  # a round closes as soon as its devices are done
FIELDS_BYTES = 64 << 20  # the most that a state file has beside its vectors

Show = Callable[[str], AbstractContextManager[Progress]]


def run_rounds(workspace: Workspace, federation: Federation, *, show: Show, device: str) -> None:
    """Run the configured rounds, or those that an interrupted call has left.

    After a round the state that the next one needs is on disk before the ledger closes the round,
    so that a process killed at any moment carries on with the same bits. The caller is the
    directory's `sole_writer`. Raises `LedgerError` where the state is gone.
    """
    ledger = workspace.ledger
    coordinator = Coordinator(
        ledger,
        rounds=workspace.config.run.rounds,
        quorum=1,
        deadline_s=DEADLINE_S,
        training=federation.settings.training,
        encoding=federation.settings.encoding,
        schedule=workspace.config.hardening,
    )
    states = _States(ledger, federation)
    states.restore(ledger.latest_round())
    while not coordinator.finished:
        if coordinator.waits_for_hardening:
            run_between_rounds(workspace, show=show, device=device)
        coordinator.start(time.time())
        with show("simulate") as progress:
            while (row := ledger.open_round()) is not None:
                _run_round(coordinator, federation, states, row, progress)
    states.record_late()


def _run_round(
    coordinator: Coordinator,
    federation: Federation,
    states: _States,
    row: schema.Round,
    progress: Progress,
) -> None:
    ledger, number, rounds = coordinator.ledger, row.number, coordinator.rounds
    states.record_late()  # what came too late for the round before comes now
    base = ledger.global_weights(number)
    result = federation.run_round(
        base,
        number,
        progress=lambda done, devices: progress(
            number, rounds, f"rounds; {done} of {devices} devices in round {number + 1}"
        ),
    )
    offers = [_store(ledger, row, client, federation) for client in result.clients]
    late = [_store(ledger, row, client, federation) for client in result.late]
    states.save(number + 1, late)
    for offer, norm in offers:
        ledger.record_update(offer, norm=norm, received_at_s=time.time())
    simulated = {offer.device for offer, _ in offers}
    if foreign := {update.device for update in ledger.updates(number)} - simulated:
        raise LedgerError(
            f"round {number}: the ledger holds updates of {', '.join(sorted(foreign))[:200]}, "
            "which the simulation does not ask; choose another --out"
        )
    coordinator.on_tick(max(time.time(), row.deadline_s))
    states.forget(number)
    loss = sum(o.loss_last * o.samples for o, _ in offers) / sum(o.samples for o, _ in offers)
    progress(number + 1, rounds, f"rounds; training loss {loss:.3f}")


def _store(
    ledger: Ledger, row: schema.Round, client: ClientUpdate, federation: Federation
) -> tuple[Offer, float]:
    """Put the update's bytes into the ledger's blobs; return its offer and its L2 norm."""
    ledger.blobs.put(client.data)
    offer = Offer(
        device=client.device,
        blob=BlobRef(sha256=hashlib.sha256(client.data).hexdigest(), size=len(client.data)),
        run=ledger.run,
        round=row.number,
        base_sha256=row.base_sha256,
        layout=ledger.layout.fingerprint,
        encoding=federation.settings.encoding,
        samples=client.samples,
        steps=client.local.steps,
        loss_first=client.local.loss_first_epoch,
        loss_last=client.local.loss_last_epoch,
        wall_s=client.local.wall_s,
        cpu_s=client.local.cpu_s,
        peak_rss_bytes=0,  # of a process that is all devices at once: it would mean nothing
    )
    return offer, math.sqrt(float(np.square(client.update, dtype=np.float64).sum()))


class _States:
    """`simulation/state-T.safetensors`: what devices and server keep before round T.

    With it the offers of the round before that come after its closing.
    """

    def __init__(self, ledger: Ledger, federation: Federation) -> None:
        self._ledger, self._federation = ledger, federation
        self._late: list[dict[str, Any]] = []
        vectors = 2 * len(federation.devices) + 1
        self._max_bytes = vectors * 4 * ledger.layout.size + FIELDS_BYTES

    def restore(self, number: int) -> None:
        """Bring the federation to where it was before round `number`, and drop other states."""
        for other in set((self._ledger.directory / FOLDER).glob("state-*")) - {self._path(number)}:
            other.unlink()  # of a process that was killed while it wrote one or before `forget`
        if number == 0:
            return
        path = self._path(number)
        if not path.exists():
            raise LedgerError(f"{path} is gone; without it the rounds cannot go on as they began")
        state, fields = read_tensor_file(path, max_bytes=self._max_bytes)
        self._federation.restore(state)
        self._late = fields["late"]

    def save(self, number: int, late: list[tuple[Offer, float]]) -> None:
        """Write the federation's state before round `number`."""
        self._late = [{"offer": dataclasses.asdict(offer), "norm": norm} for offer, norm in late]
        state: dict[str, Flat] = self._federation.state()
        write_tensor_file(self._path(number), state, {"late": self._late})

    def record_late(self) -> None:
        """Record what came after its round; once or again."""
        for entry in self._late:
            blob = BlobRef(**entry["offer"]["blob"])
            offer = Offer(**entry["offer"] | {"blob": blob})
            self._ledger.record_update(offer, norm=entry["norm"], received_at_s=time.time())

    def forget(self, number: int) -> None:
        """Delete the state before a round that is closed."""
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._ledger.directory / FOLDER / f"state-{number}.safetensors"
