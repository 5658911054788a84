"""Judging a model: clean, PGD, and AutoAttack on what PGD leaves."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.part_file import write_durably
from models.networks import build_model, load_flat
from server_toolkit.benchmark.federate import final_weights
from server_toolkit.benchmark.store import Outcome
from server_toolkit.benchmark.workplace import Workplace
from server_toolkit.robust.evaluation import judge

Kept = dict[str, npt.NDArray[np.generic]]


def compute_evaluate(place: Workplace) -> Outcome:
    """Return, as arrays, which test images a model gets right, clean and attacked.

    `clean` and `pgd` are over all images, `autoattack` over the first of them: right there means
    right after PGD and after every part of AutoAttack. `labels` are those of all images.
    """
    settings = place.piece.settings
    judging, epsilon = settings["judging"], settings["epsilon"]
    test = place.split().test
    images, labels = test.images, test.labels
    model = build_model(place.spec, seed=0)
    load_flat(model, final_weights(place.store, place.piece.inputs["model"]))
    common = {
        "epsilon": epsilon,
        "seed": settings["data"]["seed"],
        "device": place.device,
        "keeper": _Keeper(place),
        "progress": lambda *_: place.tick(),
    }
    first = judge(
        model,
        images,
        labels,
        attacks="pgd",
        steps=judging["pgd_steps"],
        batch_size=judging["batch_size"],
        **common,
    )
    clean, pgd = first.correct("clean"), first.correct("pgd")

    autoattack = pgd[: judging["autoattack_images"]].copy()
    left = np.flatnonzero(autoattack)
    left_after: dict[str, int] = {}
    if len(left):
        second = judge(
            model,
            images[left],
            labels[left],
            attacks="autoattack",
            square_queries=judging["square_queries"],
            batch_size=judging["autoattack_batch_size"],
            **common,
        )
        autoattack[left] = second.correct("autoattack")
        left_after = dict(second.outcome("autoattack").left_after)
    values = {
        "clean": float(clean.mean()),
        "pgd": float(pgd.mean()),
        "autoattack": float(autoattack.mean()),
        "left_after": {"pgd": len(left), **left_after},
    }
    tensors = {"clean": clean, "pgd": pgd, "autoattack": autoattack, "labels": labels}
    return Outcome(values, tensors)


class _Keeper:
    """Keeps finished batches as the piece's checkpoints."""

    def __init__(self, place: Workplace) -> None:
        self._place = place

    def load(self, key: str) -> Kept | None:
        """Return the arrays kept under this key, or None."""
        try:
            with np.load(self._path(key), allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError:
            return None

    def store(self, key: str, values: Kept) -> None:
        """Keep these arrays."""
        buffer = io.BytesIO()
        np.savez(buffer, **values)  # type: ignore[arg-type]
        write_durably(self._path(key), buffer.getvalue())

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self._place.store.checkpoint(self._place.piece, f"{name}.npz")
