"""The other end of the wire for a benchmark: gives tasks, takes updates, offers a release.

It speaks the real protocol with signatures and chunks and keeps the sha256 of every upload. It is
no fleet server: one device, nothing durable, and the next base is the last one plus the update.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol import topics
from edge_sdk.protocol.chunks import Chunk, decode_chunk, encode_chunk
from edge_sdk.protocol.messages import (
    UPLINK,
    BlobRef,
    Done,
    InstallReport,
    Message,
    Need,
    Offer,
    Release,
    Status,
    Task,
    decode_message,
    encode_message,
)
from edge_sdk.protocol.part_file import PartFile
from edge_sdk.protocol.receiver import Receiver
from edge_sdk.protocol.sender import read_chunks
from edge_sdk.protocol.signing import open_sealed, seal
from edge_sdk.protocol.updates import decode_update, encode_weights
from models import ParameterLayout

Float32 = npt.NDArray[np.float32]
Send = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Upload:
    """One update as it arrived."""

    round: int
    sha256: str
    size: int


class BenchServer:
    """Feed it what the device publishes; `send` takes its answers.

    `task` is the first round's; `rounds` follow each other. `release`, if given, is announced
    between the first and the second round, so that the second round's upload shows whether
    installing it changes anything. `finished` once every update is in and the release is judged.
    """

    def __init__(
        self,
        directory: Path,
        *,
        key: Ed25519PrivateKey,
        device: str,
        device_key: Ed25519PublicKey,
        layout: ParameterLayout,
        base: Float32,
        task: Task,
        rounds: int,
        release: Release | None,
        send: Send,
    ) -> None:
        self._directory, self._key, self._device = directory, key, device
        self._device_key, self._layout, self._base = device_key, layout, base
        self._task, self._rounds, self._release, self._send = task, rounds, release, send
        self._files = {
            p.name: BlobRef(sha256=p.name, size=p.stat().st_size) for p in _blobs(directory)
        }
        self._receiver: Receiver | None = None
        self._started = False
        self.finished = False
        self.uploads: list[Upload] = []
        self.report: InstallReport | None = None
        self.release_announced_s = self.release_judged_s = 0.0
        self.bytes_up: dict[str, int] = {}
        self.bytes_down: dict[str, int] = {}

    def on_message(self, topic: str, payload: bytes) -> None:
        """Take what the device published; raises `ProtocolError` for what is not the protocol's."""
        uplink = topics.parse_uplink(topic)
        if uplink.device != self._device:
            return
        if uplink.channel == "chunk":
            self._count(self.bytes_up, "update chunks", payload)
            self._on_chunk(decode_chunk(payload))
            return
        data = open_sealed(payload, self._device_key)
        message = decode_message(data, UPLINK)
        is_release = isinstance(message, Need) and self._is_release(message.sha256)
        self._count(self.bytes_up, "release need" if is_release else message.type, payload)
        match message:
            case Status() if not self._started:
                self._started = True
                self._broadcast(topics.TASK, self._task)
            case Need() if message.sha256 in self._files:
                blob = self._files[message.sha256]
                part = "release files" if self._is_release(message.sha256) else "task files"
                for chunk in read_chunks(self._directory / blob.sha256, blob, message):
                    self._say("chunk", encode_chunk(chunk), part)
            case Offer():
                self._on_offer(message)
            case InstallReport():
                self.report, self.release_judged_s = message, time.monotonic()
                digest = hashlib.sha256(data).hexdigest()
                self._tell(Done(device=self._device, sha256=digest, verdict="noted"))
                self._next_round()

    def _on_offer(self, offer: Offer) -> None:
        if any(u.sha256 == offer.blob.sha256 for u in self.uploads):
            self._tell(Done(device=self._device, sha256=offer.blob.sha256, verdict="known"))
        elif self._receiver is None:
            part = PartFile(offer.blob, self._directory / "incoming")
            self._receiver = Receiver(part, device=self._device)
            self._tell(self._receiver.start(time.monotonic()))

    def _on_chunk(self, chunk: Chunk) -> None:
        receiver = self._receiver
        if receiver is None or chunk.sha256 != receiver.part.blob.sha256:
            return
        self._tell(receiver.on_chunk(chunk, time.monotonic()))
        if not receiver.complete:
            return
        self._receiver, blob = None, receiver.part.blob
        path = self._directory / "incoming" / f"{blob.sha256}.whole"
        if not receiver.part.finish(path):
            raise ProtocolError("an update arrived with another sha256 than its offer names")
        data = path.read_bytes()
        path.unlink()
        self.uploads.append(Upload(self._task.round, blob.sha256, blob.size))
        self._base = self._base + decode_update(data, self._layout, self._task.encoding)
        self._tell(Done(device=self._device, sha256=blob.sha256, verdict="accepted"))
        if self._release is not None and self.report is None:
            self.release_announced_s = time.monotonic()
            self._broadcast(topics.RELEASE, self._release)
        else:
            self._next_round()

    def on_tick(self) -> None:
        """Ask again for chunks that do not come."""
        if self._receiver is not None:
            self._tell(self._receiver.on_tick(time.monotonic()))

    def _next_round(self) -> None:
        if len(self.uploads) >= self._rounds:
            self.finished = True
            return
        base = encode_weights(self._base, self._layout)
        self._files |= {(ref := add_blob(self._directory, base)).sha256: ref}
        self._task = dataclasses.replace(
            self._task, round=self._task.round + 1, base=ref, issued_at_s=self._task.issued_at_s + 1
        )
        self._broadcast(topics.TASK, self._task)

    def _is_release(self, sha256: str) -> bool:
        release = self._release
        if release is None:
            return False
        blobs = (release.int8.blob, release.fp32.blob, release.reference)
        return sha256 in {b.sha256 for b in blobs}

    def _tell(self, message: Message | None) -> None:
        if message is not None:
            self._say("msg", seal(encode_message(message), self._key), message.type)

    def _say(self, channel: topics.Channel, payload: bytes, part: str) -> None:
        self._count(self.bytes_down, part, payload)
        self._send(topics.downlink(self._device, channel), payload)

    def _broadcast(self, topic: str, message: Task | Release) -> None:
        payload = seal(encode_message(message), self._key)
        self._count(self.bytes_down, message.type, payload)
        self._send(topic, payload)

    @staticmethod
    def _count(counts: dict[str, int], part: str, payload: bytes) -> None:
        counts[part] = counts.get(part, 0) + len(payload)


def add_blob(directory: Path, data: bytes) -> BlobRef:
    """Put a file where the server gives files from, and return its reference."""
    sha256 = hashlib.sha256(data).hexdigest()
    (directory / sha256).write_bytes(data)
    return BlobRef(sha256=sha256, size=len(data))


def _blobs(directory: Path) -> list[Path]:
    return [p for p in directory.iterdir() if p.is_file() and len(p.name) == 64]
