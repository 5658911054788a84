"""Rebuilding every weight vector of a run from its ledger, and checking that nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.updates import decode_update
from models.layout import Flat
from server_toolkit.errors import LedgerError
from server_toolkit.ledger import schema
from server_toolkit.rounds.fedavg import federated_average

if TYPE_CHECKING:
    from server_toolkit.distill.segments import Trajectories
    from server_toolkit.ledger.ledger import Ledger


def stored_update(ledger: Ledger, row: schema.Update) -> Flat:
    """Return the recorded update as flat float32; raises `LedgerError` if its blob is damaged."""
    try:
        return decode_update(ledger.blobs.read(row.blob_sha256), ledger.layout, row.encoding)
    except ProtocolError as error:
        raise LedgerError(f"update of {row.device}, round {row.round}: {error}") from error


def device_weights(ledger: Ledger, device: str, round: int) -> Flat:
    """Return base + update in float32; raises `LedgerError` if the device sent none."""
    row = ledger.update(device, round)
    if row is None:
        raise LedgerError(f"{device} sent no update for round {round}")
    return ledger.global_weights(round) + stored_update(ledger, row)


def aggregate(ledger: Ledger, round: int) -> Flat:
    """Return FedAvg over the accepted updates of `round`, one decoded update in memory at a time.

    Raises `LedgerError` for a damaged blob or a round without accepted updates.
    """
    rows = [row for row in ledger.updates(round) if row.verdict == "accepted"]
    if not rows:
        raise LedgerError(f"round {round} has no accepted update")
    updates = ((row.samples, stored_update(ledger, row)) for row in rows)
    return federated_average(ledger.global_weights(round), updates)


def trajectories(ledger: Ledger, *, devices: bool) -> Trajectories:
    """Return the weights of every closed round: the fleet's, and base + update of each device.

    Without `devices` the fleet's alone, which need neither the time nor the memory. Where the
    server hardened between two rounds, the aggregate before it is kept too. Late updates are left
    out, so that the result no longer changes once the rounds are closed.
    """
    from server_toolkit.distill.segments import Trajectories

    last = ledger.latest_round()
    paths: dict[str, dict[int, Flat]] = {}
    for row in ledger.updates() if devices else ():
        if row.round < last and row.verdict == "accepted":
            weights = ledger.global_weights(row.round) + stored_update(ledger, row)
            paths.setdefault(row.device, {})[row.round] = weights
    return Trajectories(
        {t: ledger.global_weights(t) for t in range(last + 1)},
        paths,
        {row.round: ledger.aggregate_weights(row.round) for row in ledger.hardened_bases()},
    )


def verify(ledger: Ledger) -> Iterator[str]:
    """Yield a sentence for everything that is no longer as it was received.

    Every blob's hash is computed anew, those of releases too, every update decoded, every round's
    base compared with the aggregate before it, and every aggregate computed again and compared bit
    for bit.
    """
    named = [(ledger.initial.sha256, "initial weights"), (ledger.program.sha256, "program")]
    named += [
        (row.weights_sha256, f"hardened weights of round {row.round}")
        for row in ledger.hardened_bases()
    ]
    named += [(f["sha256"], f"release {r.version}") for r in ledger.releases() for f in r.files]
    for sha256, what in named:
        try:
            ledger.blobs.read(sha256)
        except LedgerError as error:
            yield f"{what}: {error}"
    for row in ledger.updates():
        try:
            stored_update(ledger, row)
        except LedgerError as error:
            yield f"update of {row.device}, round {row.round}: {error}"
    for closed in ledger.rounds():
        if closed.base_sha256 != ledger.weights_blob(closed.number).sha256:
            yield (
                f"round {closed.number}: its base is neither the aggregate of the round before "
                "nor what was hardened from it"
            )
        if closed.closed_at_s is None:
            continue
        try:
            stored = ledger.aggregate_weights(closed.number + 1)
            same = np.array_equal(aggregate(ledger, closed.number), stored)
        except LedgerError as error:
            yield f"round {closed.number}: its aggregate cannot be checked: {error}"
            continue
        if not same:
            yield f"round {closed.number}: the stored aggregate differs from FedAvg of its updates"
