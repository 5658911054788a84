"""A piece of the benchmark's work, named by everything that decides its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

PieceKind = Literal["federate", "proxy", "harden", "evaluate"]

# Raised when the code changes what a piece of the same settings gives, so that no result of the
# old code is taken for one of the new.
RESULTS_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One computation: its settings, and the pieces that it reads.

    `settings` are JSON-ready and hold the hashes of data, never paths; `label` is for people and
    decides nothing.
    """

    kind: PieceKind
    settings: Mapping[str, Any]
    inputs: Mapping[str, Piece] = field(default_factory=dict)
    label: str

    @cached_property
    def key(self) -> str:
        """Twenty-four hex digits, the same wherever the same is computed."""
        content = {
            "version": RESULTS_VERSION,
            "kind": self.kind,
            "settings": self.settings,
            "inputs": {name: piece.key for name, piece in self.inputs.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def in_order(wanted: Iterable[Piece]) -> list[Piece]:
    """Return the pieces and all that they read, each once, inputs before their readers."""
    found: dict[str, Piece] = {}

    def add(piece: Piece) -> None:
        if piece.key in found:
            return
        for source in piece.inputs.values():
            add(source)
        found[piece.key] = piece

    for piece in wanted:
        add(piece)
    return list(found.values())


def readers_of(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Return for every piece's key the pieces that read it."""
    readers: dict[str, list[Piece]] = {}
    for piece in pieces:
        for source in piece.inputs.values():
            readers.setdefault(source.key, []).append(piece)
    return readers
