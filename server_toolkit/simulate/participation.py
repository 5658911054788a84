"""Which devices a round asks, and when they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Attendance:
    """The devices whose updates count, and those that train but answer too late, in their order."""

    on_time: tuple[str, ...]
    late: tuple[str, ...]


def attendance(
    devices: Sequence[str],
    *,
    round: int,
    seed: int,
    participation: float,
    late: float,
    never: float,
) -> Attendance:
    """Draw a round's devices: `participation` of all, rounded, at least one.

    Of those, each is late or never answers with the probabilities `late` and `never`. A real
    round waits until somebody has answered, so that one always counts. The same seed and round
    give the same draw.
    """
    rng = np.random.default_rng([seed, round])
    asked = rng.permutation(len(devices))[: max(1, round_half_up(participation * len(devices)))]
    luck = rng.random(len(asked))
    luck[np.argmax(luck)] = 1.0
    on_time = sorted(asked[luck >= late + never])
    too_late = sorted(asked[(luck >= never) & (luck < late + never)])
    return Attendance(tuple(devices[i] for i in on_time), tuple(devices[i] for i in too_late))


def round_half_up(value: float) -> int:
    """Return the nearest integer; 2.5 gives 3."""
    return int(np.floor(value + 0.5))
