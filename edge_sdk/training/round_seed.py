"""The seed of one device's shuffling in one round."""

from __future__ import annotations

import hashlib


def round_seed(seed: int, *, run: str, device: str, round: int) -> int:
    """Return 32 bits that differ from device to device, round to round and run to run."""
    text = f"{seed}/{run}/{device}/{round}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
