"""Every message that crosses the wire, except chunks, as a frozen dataclass.

On the wire a message is one JSON object with a `type` field, signed over its exact bytes
(`signing.py`). Decoding is strict: a message that does not fit raises `ProtocolError` and counts
for nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.schema import bounded, decode, parse_json
from edge_sdk.protocol.topics import DEVICE_ID

MAX_MESSAGE_BYTES = 32 * 1024
MAX_BLOB_BYTES = 1 << 30
SHA256 = r"[0-9a-f]{64}"
DEVICE = DEVICE_ID.pattern
NAME = r"[A-Za-z0-9._-]{1,80}"

# "topk-0.01" sends the hundredth of the entries that is largest; each fraction has one spelling.
ENCODING = r"int8|int4|fp32|topk-0\.[0-9]{0,2}[1-9]"
Encoding = str  # that matches ENCODING


@dataclass(frozen=True, kw_only=True)
class BlobRef:
    """Content to fetch: its sha256 in hex and its size in bytes."""

    sha256: str = bounded(pattern=SHA256)
    size: int = bounded(low=1, high=MAX_BLOB_BYTES)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a device trains locally; SGD as torch defines it, plus FedProx's `proximal_mu`."""

    epochs: int = bounded(low=1, high=1000)
    batch_size: int = bounded(low=1, high=4096)
    learning_rate: float = bounded(low=0, high=100)
    momentum: float = bounded(low=0, high=1)
    weight_decay: float = bounded(low=0, high=1)
    proximal_mu: float = bounded(low=0, high=1000)
    seed: int = bounded(low=0, high=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Server to all, retained: train from `base` with `program` and offer the update."""

    type: ClassVar[str] = "task"
    run: str = bounded(pattern=NAME)
    round: int = bounded(low=0, high=10**6)
    layout: str = bounded(pattern=r"[0-9a-f]{16}")
    program: BlobRef
    base: BlobRef
    training: TrainingSettings
    encoding: str = bounded(pattern=ENCODING)
    issued_at_s: float = bounded(low=0, high=1e11)
    expires_at_s: float = bounded(low=0, high=1e11)


@dataclass(frozen=True, kw_only=True)
class ReleaseFile:
    """One model file of a release and how far its outputs may be from the reference's."""

    blob: BlobRef
    max_abs_diff: float = bounded(low=0, high=1e6)


@dataclass(frozen=True, kw_only=True)
class ReleaseHealth:
    """What the new model must reach on a device's own labelled images, or the device goes back."""

    min_accuracy: float = bounded(low=0, high=1)
    max_accuracy_drop: float = bounded(low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Release:
    """Server to all, retained: install this model. `version` only ever grows."""

    type: ClassVar[str] = "release"
    name: str = bounded(pattern=NAME)
    version: int = bounded(low=1, high=10**9)
    created_at_s: float = bounded(low=0, high=1e11)
    expires_at_s: float = bounded(low=0, high=1e11)
    model: dict[str, Any]
    fp32: ReleaseFile
    int8: ReleaseFile
    reference: BlobRef
    health: ReleaseHealth
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Device to server: an update is ready; ask for its chunks."""

    type: ClassVar[str] = "offer"
    device: str = bounded(pattern=DEVICE)
    blob: BlobRef
    run: str = bounded(pattern=NAME)
    round: int = bounded(low=0, high=10**6)
    base_sha256: str = bounded(pattern=SHA256)
    layout: str = bounded(pattern=r"[0-9a-f]{16}")
    encoding: str = bounded(pattern=ENCODING)
    samples: int = bounded(low=1, high=10**9)
    steps: int = bounded(low=1, high=10**9)
    loss_first: float
    loss_last: float
    wall_s: float = bounded(low=0, high=1e8)
    cpu_s: float = bounded(low=0, high=1e8)
    peak_rss_bytes: int = bounded(low=0, high=1 << 50)


@dataclass(frozen=True, kw_only=True)
class Need:
    """Receiver to sender, either way: send the chunks in these half-open index ranges."""

    type: ClassVar[str] = "need"
    device: str = bounded(pattern=DEVICE)
    sha256: str = bounded(pattern=SHA256)
    ranges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.ranges) <= 64 or any(not 0 <= a < b <= 2**24 for a, b in self.ranges):
            raise ValueError("ranges must be 1 to 64 half-open index ranges")


@dataclass(frozen=True, kw_only=True)
class Done:
    """Server to device: the offered blob or report is stored for good; the device may delete it."""

    type: ClassVar[str] = "done"
    device: str = bounded(pattern=DEVICE)
    sha256: str = bounded(pattern=SHA256)
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Reject:
    """Server to device: the offered blob does not count. `permanent` means: do not offer again."""

    type: ClassVar[str] = "reject"
    device: str = bounded(pattern=DEVICE)
    sha256: str = bounded(pattern=SHA256)
    reason: str
    permanent: bool
    retry_after_s: float = bounded(low=0, high=1e6)


InstallVerdict = Literal["running", "rolled_back", "refused"]


@dataclass(frozen=True, kw_only=True)
class InstallReport:
    """Device to server, sent until `Done`: what became of a release on this device."""

    type: ClassVar[str] = "install"
    device: str = bounded(pattern=DEVICE)
    release: str = bounded(pattern=NAME)
    version: int = bounded(low=0, high=10**9)
    verdict: InstallVerdict
    reason: str
    active_version: int = bounded(low=0, high=10**9)
    precision: Literal["fp32", "int8"]
    trial_max_abs_diff: float | None
    local_accuracy: float | None
    inference_ms: float | None
    at_s: float = bounded(low=0, high=1e11)


AgentState = Literal["idle", "fetch", "train", "publish", "install"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Device to server, on connect, on change and as a heartbeat; the newest one wins."""

    type: ClassVar[str] = "status"
    device: str = bounded(pattern=DEVICE)
    at_s: float = bounded(low=0, high=1e11)
    agent_version: str
    state: AgentState
    detail: str
    round: int | None = bounded(low=0, high=10**6)
    active_version: int = bounded(low=0, high=10**9)
    samples: int = bounded(low=0, high=10**9)
    bytes_up: int = bounded(low=0, high=1 << 60)
    bytes_down: int = bounded(low=0, high=1 << 60)
    outbox: int = bounded(low=0, high=10**6)


Message = Task | Release | Offer | Need | Done | Reject | InstallReport | Status
UPLINK: tuple[type[Message], ...] = (Offer, Need, InstallReport, Status)
DOWNLINK: tuple[type[Message], ...] = (Need, Done, Reject)


def readable(text: str) -> str:
    """Return `text` fit for a `reason`: one line of at most 1,000 printable characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]


def encode_message(message: Message) -> bytes:
    """Return the JSON bytes that are signed and sent."""
    fields = {"type": message.type, **dataclasses.asdict(message)}
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()


def decode_message(data: bytes, allowed: tuple[type[Message], ...]) -> Message:
    """Return the message in `data` if its type is allowed here; raises `ProtocolError` if not."""
    fields = parse_json(data, max_bytes=MAX_MESSAGE_BYTES)
    kind = fields.pop("type", None)
    for cls in allowed:
        if kind == cls.type:
            return decode(cls, fields)
    expected = ", ".join(c.type for c in allowed)
    raise ProtocolError(f"message type {str(kind)[:40]!r} is not expected here ({expected})")
