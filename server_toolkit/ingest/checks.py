"""The checks that everything from a device passes, in their order, before it counts.

topic -> size -> envelope and schema -> device known and active -> signature -> (an offer:) quota,
run, round, base, layout, duplicate -> chunks -> sha256 -> bounded zstd -> safetensors header ->
names, shapes, dtypes -> finite, norm. An offer is signed over its blob's sha256, so nobody can
open a transfer in another device's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.chunks import CHUNK_BYTES
from edge_sdk.protocol.messages import MAX_MESSAGE_BYTES, UPLINK, Message, Offer, decode_message
from edge_sdk.protocol.signing import (
    SIGNATURE_LINE_BYTES,
    open_sealed,
    parse_public_key,
    unverified_payload,
)
from edge_sdk.protocol.topics import Uplink, parse_uplink
from edge_sdk.protocol.updates import decode_update
from models.layout import Flat
from server_toolkit.errors import RefusedUpdateError
from server_toolkit.ledger import Ledger

CHUNK_HEADER_BYTES = 41
MAX_PAYLOAD_BYTES = {
    "msg": SIGNATURE_LINE_BYTES + MAX_MESSAGE_BYTES,
    "chunk": CHUNK_HEADER_BYTES + CHUNK_BYTES,
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one device may ask for; `max_norm` is an update's L2 norm, 0 for any."""

    max_update_bytes: int
    max_open_transfers: int
    max_norm: float


class RefusedOfferError(RefusedUpdateError):
    """An offer that does not count; `permanent` means that offering it again is of no use."""

    def __init__(self, reason: str, *, permanent: bool = True, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.permanent = permanent
        self.retry_after_s = retry_after_s


def check_arrival(topic: str, size: int) -> Uplink:
    """Check topic and size in bytes; raises `ProtocolError`."""
    uplink = parse_uplink(topic)
    if size > MAX_PAYLOAD_BYTES[uplink.channel]:
        raise ProtocolError(f"{size} bytes on a {uplink.channel} topic")
    return uplink


def check_device(ledger: Ledger, device: str) -> str:
    """Return the public key of a known, active device; raises `ProtocolError` for any other."""
    row = ledger.device(device)
    if row is None:
        raise ProtocolError(f"device {device} is not enrolled")
    if not row.active:
        raise ProtocolError(f"device {device} is disabled")
    return row.public_key


def check_message(ledger: Ledger, uplink: Uplink, envelope: bytes) -> tuple[Message, bytes]:
    """Return the message and its payload as signed by the topic's device.

    Raises `ProtocolError` for a misfit, an unknown or disabled device, or a foreign signature.
    """
    message = decode_message(unverified_payload(envelope), UPLINK)
    device = getattr(message, "device", None)
    if device != uplink.device:
        raise ProtocolError(f"a message in the name of {device} on the topic of {uplink.device}")
    key = parse_public_key(check_device(ledger, uplink.device))
    return message, open_sealed(envelope, key)


def check_offer(ledger: Ledger, offer: Offer, limits: Limits) -> None:
    """Check what an offer claims against the run and its rounds; raises `RefusedOfferError`.

    Rounds that are closed are fine: their updates are recorded as late.
    """
    if offer.blob.size > limits.max_update_bytes:
        raise RefusedOfferError(
            f"update of {offer.blob.size} bytes; the limit is {limits.max_update_bytes}"
        )
    if offer.run != ledger.run:
        raise RefusedOfferError(f"update for run {offer.run}; this is run {ledger.run}")
    row = ledger.round(offer.round)
    if row is None:
        raise RefusedOfferError(f"update for round {offer.round}, which has not begun")
    if offer.base_sha256 != row.base_sha256:
        raise RefusedOfferError(f"update from weights that are not the base of round {offer.round}")
    if offer.layout != ledger.layout.fingerprint:
        raise RefusedOfferError("update for another network layout")
    known = ledger.update(offer.device, offer.round)
    if known is not None and known.blob_sha256 != offer.blob.sha256:
        raise RefusedOfferError(f"another update of round {offer.round} is recorded already")


def check_update(ledger: Ledger, offer: Offer, data: bytes, base: Flat, *, limits: Limits) -> float:
    """Return the L2 norm of the update in `data`, whose sha256 is known to be right.

    Raises `RefusedOfferError` for what is no update of this network, or one out of bounds.
    """
    try:
        update = decode_update(data, ledger.layout, offer.encoding)
    except ProtocolError as error:
        raise RefusedOfferError(str(error)) from error
    with np.errstate(over="ignore"):
        if not np.isfinite(base + update).all():
            raise RefusedOfferError("the update takes the weights out of float32's range")
    norm = math.sqrt(float(np.square(update, dtype=np.float64).sum()))
    if limits.max_norm and norm > limits.max_norm:
        raise RefusedOfferError(f"update of norm {norm:.4g}; the limit is {limits.max_norm:.4g}")
    return norm
