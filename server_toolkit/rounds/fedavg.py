"""Weighted federated averaging (McMahan et al. 2017, algorithm 1), deterministic."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from models.layout import Flat


def federated_average(base: Flat, updates: Iterable[tuple[int, Flat]]) -> Flat:
    """Return base + sum(n_i * update_i) / sum(n_i), flat float32.

    `updates` are (samples, flat float32 update) pairs. The sum runs in float64 in the order given
    and is rounded to float32 once, so the same updates in the same order (the ledger's: by device
    id) give the same bits. Raises `ValueError` without updates.
    """
    total = np.zeros(base.shape, np.float64)
    samples = 0
    for count, update in updates:
        total += count * update.astype(np.float64)
        samples += count
    if samples == 0:
        raise ValueError("there is no update to average")
    return (base.astype(np.float64) + total / samples).astype(np.float32)
