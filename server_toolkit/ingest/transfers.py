"""Updates on their way in: offers answered, chunks assembled, finished updates recorded."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.chunks import Chunk
from edge_sdk.protocol.messages import Done, Need, Offer, Reject
from edge_sdk.protocol.part_file import PartFile
from edge_sdk.protocol.receiver import Receiver
from models.layout import Flat
from server_toolkit.errors import LedgerError
from server_toolkit.ingest.checks import (
    Limits,
    RefusedOfferError,
    check_device,
    check_offer,
    check_update,
)
from server_toolkit.ledger import Ledger

log = logging.getLogger(__name__)

QUOTA_RETRY_S = 30.0
DAMAGED_RETRY_S = 10.0
GIVE_WAY_AFTER_S = 60.0  # a partial file idle for so long makes room for a new one
FORGET_AFTER_S = 900.0  # no chunk for so long: stop asking until the device offers again
KEEP_PARTS_S = 7 * 86400.0
REMEMBERED = 4096  # finished transfers whose late duplicate chunks are no news

Reply = Need | Done | Reject


@dataclass
class Transfer:
    """An update that is being pulled from a device."""

    offer: Offer
    receiver: Receiver
    last_s: float


class Transfers:
    """All incoming updates. One thread uses it; partial files survive a restart.

    An update is on the disk, checked and in the ledger before the device hears `Done`, so the
    device may delete it then and never earlier. Whatever is interrupted before is offered again.
    """

    def __init__(self, ledger: Ledger, *, limits: Limits) -> None:
        self.ledger = ledger
        self.limits = limits
        self.directory = ledger.directory / "incoming"
        self.recorded = 0
        self._open: dict[tuple[str, str], Transfer] = {}
        self._finished: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._base: tuple[str, Flat] | None = None

    def on_offer(self, offer: Offer, now_s: float) -> Reply | None:
        """Answer an offer of a verified device; raises `RefusedOfferError`."""
        check_offer(self.ledger, offer, self.limits)
        known = self.ledger.update(offer.device, offer.round)
        if known is not None:
            return _done(offer, known.verdict)
        if (whole := self._whole(offer)) is not None:
            return self._record(offer, whole, now_s)
        key = (offer.device, offer.blob.sha256)
        if key not in self._open or self._open[key].offer.blob != offer.blob:
            self._make_room(offer, now_s)
            part = PartFile(offer.blob, self._folder(offer.device))
            self._open[key] = Transfer(offer, Receiver(part, device=offer.device), now_s)
        transfer = self._open[key]
        transfer.last_s = now_s
        if transfer.receiver.complete:
            return self._finish(transfer, now_s)
        return transfer.receiver.start(now_s)

    def on_chunk(self, device: str, chunk: Chunk, now_s: float) -> Reply | None:
        """Store a chunk, and the update if it was the last one.

        Raises `ProtocolError` for a chunk that nobody asked for, `RefusedOfferError` for a
        finished update that does not count.
        """
        transfer = self._open.get((device, chunk.sha256))
        if transfer is None:
            if (device, chunk.sha256) in self._finished:
                return None
            raise ProtocolError(f"chunk of {chunk.sha256[:12]}, for which no transfer is open")
        need = transfer.receiver.on_chunk(chunk, now_s)
        transfer.last_s = now_s
        return self._finish(transfer, now_s) if transfer.receiver.complete else need

    def on_tick(self, now_s: float) -> list[Need]:
        """Return what must be asked for again; transfers without any progress are set aside."""
        needs = []
        for key, transfer in list(self._open.items()):
            if now_s - transfer.last_s > FORGET_AFTER_S:
                del self._open[key]
            elif (need := transfer.receiver.on_tick(now_s)) is not None:
                needs.append(need)
        return needs

    def collect_garbage(self) -> None:
        """Delete partial files that nobody has added to for `KEEP_PARTS_S`."""
        now_s = time.time()  # file times are wall-clock times
        for path in self.directory.glob("*/*"):
            if now_s - path.stat().st_mtime > KEEP_PARTS_S:
                log.info("deleting %s: nothing came for a week", path)
                path.unlink(missing_ok=True)

    def _folder(self, device: str) -> Path:
        return self.directory / device

    def _arrived(self, offer: Offer) -> Path:
        """Where a complete file lies until it has passed its checks."""
        return self._folder(offer.device) / f"{offer.blob.sha256}.whole"

    def _whole(self, offer: Offer) -> bytes | None:
        """Return the content if it is here: a stop came after its last chunk, or it is known."""
        try:
            if self._arrived(offer).exists():
                data = self._arrived(offer).read_bytes()
            elif self.ledger.blobs.has(offer.blob.sha256):
                data = self.ledger.blobs.read(offer.blob.sha256)
            else:
                return None
        except LedgerError as error:
            log.warning("%s; pulling it again", error)
            return None
        intact = hashlib.sha256(data).hexdigest() == offer.blob.sha256
        return data if intact and len(data) == offer.blob.size else None

    def _make_room(self, offer: Offer, now_s: float) -> None:
        """Raise `RefusedOfferError` if the device has its full number of unfinished transfers.

        Those that have brought no chunk yet count too, or offers alone could fill memory and disk.
        """
        others = self._idle_s(offer.device, now_s)
        others.pop(offer.blob.sha256, None)
        while len(others) >= self.limits.max_open_transfers:
            sha256 = max(others, key=others.__getitem__)
            if others[sha256] < GIVE_WAY_AFTER_S:
                raise RefusedOfferError(
                    f"{len(others)} transfers of this device are open",
                    permanent=False,
                    retry_after_s=QUOTA_RETRY_S,
                )
            self._open.pop((offer.device, sha256), None)
            part = self._folder(offer.device) / f"{sha256}.part"
            part.unlink(missing_ok=True)
            part.with_suffix(".have").unlink(missing_ok=True)
            del others[sha256]

    def _idle_s(self, device: str, now_s: float) -> dict[str, float]:
        """Return for how long nothing has come for each of a device's unfinished transfers."""
        idle_s = {
            sha256: now_s - transfer.last_s
            for (owner, sha256), transfer in self._open.items()
            if owner == device
        }
        for part in self._folder(device).glob("*.part"):
            idle_s[part.stem] = time.time() - part.stat().st_mtime
        return idle_s

    def _finish(self, transfer: Transfer, now_s: float) -> Done:
        offer = transfer.offer
        key = (offer.device, offer.blob.sha256)
        del self._open[key]
        self._finished[key] = None
        if len(self._finished) > REMEMBERED:
            self._finished.popitem(last=False)
        arrived = self._arrived(offer)
        if not transfer.receiver.part.finish(arrived):
            raise RefusedOfferError(
                "what arrived has another sha256 than the offer",
                permanent=False,
                retry_after_s=DAMAGED_RETRY_S,
            )
        return self._record(offer, arrived.read_bytes(), now_s)

    def _record(self, offer: Offer, data: bytes, now_s: float) -> Done:
        """Check the content, store it, record it, and only then say so."""
        arrived = self._arrived(offer)
        try:
            check_device(self.ledger, offer.device)  # again: the transfer may have taken hours
            check_offer(self.ledger, offer, self.limits)
            norm = check_update(self.ledger, offer, data, self._base_of(offer), limits=self.limits)
        except (RefusedOfferError, ProtocolError):
            arrived.unlink(missing_ok=True)
            raise
        if arrived.exists():
            self.ledger.blobs.adopt(arrived)
        row = self.ledger.record_update(offer, norm=norm, received_at_s=now_s)
        self.recorded += 1
        log.info(
            "round %d: update of %s %s (%d bytes, %d samples, loss %.3f -> %.3f)",
            row.round,
            row.device,
            row.verdict,
            row.size_bytes,
            row.samples,
            row.loss_first,
            row.loss_last,
        )
        return _done(offer, row.verdict)

    def _base_of(self, offer: Offer) -> Flat:
        if self._base is None or self._base[0] != offer.base_sha256:
            self._base = (offer.base_sha256, self.ledger.global_weights(offer.round))
        return self._base[1]


def _done(offer: Offer, verdict: str) -> Done:
    return Done(device=offer.device, sha256=offer.blob.sha256, verdict=verdict)
