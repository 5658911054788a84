"""A small run with hand-made devices, for the tests of ledger, rounds, ingest and commands."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.protocol.messages import BlobRef, Offer, TrainingSettings, encode_message
from edge_sdk.protocol.signing import public_key_text, seal
from edge_sdk.protocol.updates import encode_update
from models import ModelSpec, layout_of
from server_toolkit.ledger import Ledger
from server_toolkit.rounds.coordinator import Coordinator

SPEC = ModelSpec(channels=1, image_size=8, classes=3, width=8, depth=2, mean=(0.5,), std=(0.5,))
LAYOUT = layout_of(SPEC)
TRAINING = TrainingSettings(
    epochs=1,
    batch_size=8,
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=0.0,
    proximal_mu=0.0,
    seed=0,
)


def random_flat(seed, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=LAYOUT.size)).astype(np.float32)


def new_ledger(directory: Path) -> Ledger:
    return Ledger.create(
        directory, run="run-1", spec=SPEC, weights=random_flat(0), program=b"a training program"
    )


def coordinator(ledger, *, rounds=2, quorum=1, deadline_s=100.0, schedule=None):
    return Coordinator(
        ledger,
        rounds=rounds,
        quorum=quorum,
        deadline_s=deadline_s,
        training=TRAINING,
        encoding="int8",
        schedule=schedule,
    )


class FakeDevice:
    """What a device signs and sends, without its machinery."""

    def __init__(self, device: str) -> None:
        self.id = device
        self.key = Ed25519PrivateKey.generate()
        self.public_key = public_key_text(self.key.public_key())

    def enrol(self, ledger: Ledger) -> "FakeDevice":
        ledger.add_device(self.id, self.public_key)
        return self

    def update(
        self, ledger, round=0, *, seed=1, scale=0.01, encoding="int8", samples=10, **changes
    ):
        """Return an offer for a random update of this round, and the update's bytes."""
        data = encode_update(random_flat(seed, scale), LAYOUT, encoding).data
        return self.offer(ledger, data, round, encoding=encoding, samples=samples, **changes), data

    def offer(self, ledger, data, round=0, **changes):
        row = ledger.round(round)
        offer = Offer(
            device=self.id,
            blob=BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
            run=ledger.run,
            round=round,
            base_sha256=row.base_sha256 if row else "0" * 64,
            layout=LAYOUT.fingerprint,
            encoding="int8",
            samples=10,
            steps=5,
            loss_first=2.0,
            loss_last=1.0,
            wall_s=1.0,
            cpu_s=0.5,
            peak_rss_bytes=1000,
        )
        return dataclasses.replace(offer, **changes)

    def seal(self, message):
        return seal(encode_message(message), self.key)

    def record(self, ledger, round=0, **arguments):
        """Put an update into the ledger as ingest does, without the wire."""
        offer, data = self.update(ledger, round, **arguments)
        ledger.blobs.put(data)
        return ledger.record_update(offer, norm=1.0, received_at_s=1.0)
