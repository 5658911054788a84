"""Segments of trajectories: where a student starts and where it should land."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from models.layout import Flat
from server_toolkit.errors import DistillationError

SegmentKind = Literal["device", "local", "fleet"]


@dataclass(frozen=True)
class Trajectories:
    """The weights that the server saw, each a flat `(size,) float32` vector.

    `global_path[t]` is what round t started from, with the weights after the last round as its
    last entry; `device_path[device][t]` is what that device had after round t. Where the server
    hardened the aggregate before round t, `unhardened[t]` is that aggregate and `global_path[t]`
    what became of it. Rounds or devices may be missing. Raises `DistillationError` naming the first
    vector that does not fit.
    """

    global_path: Mapping[int, Flat]
    device_path: Mapping[str, Mapping[int, Flat]] = field(default_factory=dict)
    unhardened: Mapping[int, Flat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.global_path:
            raise DistillationError("the global path is empty; run at least one round first")
        size = next(iter(self.global_path.values())).shape
        for name, weights in self._vectors():
            if weights.shape != size or weights.ndim != 1 or weights.dtype != np.float32:
                raise DistillationError(
                    f"{name}: {weights.shape} {weights.dtype} where {size} float32 was expected; "
                    "all vectors must be of one network"
                )
            if not np.isfinite(weights).all():
                raise DistillationError(f"{name} holds a weight that is not finite")

    def _vectors(self) -> Iterator[tuple[str, Flat]]:
        for t, weights in self.global_path.items():
            yield f"global weights of round {t}", weights
        for t, weights in self.unhardened.items():
            yield f"aggregate before round {t}", weights
        for device, path in self.device_path.items():
            for t, weights in path.items():
                yield f"weights of device {device} after round {t}", weights


@dataclass(frozen=True)
class Segment:
    """A start and a target on a trajectory, flat `(size,) float32` each; `round` is the start's."""

    start: Flat
    target: Flat
    description: str
    round: int


def list_segments(
    trajectories: Trajectories,
    *,
    kind: SegmentKind,
    rounds_ahead: int = 1,
    first_round: int = 0,
    last_round: int | None = None,
) -> tuple[Segment, ...]:
    """Return every segment of one kind whose start round is in the window, in a fixed order.

    `device` joins θ_i^t to θ_i^{t+M} with M = `rounds_ahead`, a device's own path across the
    averaging between its rounds; `local` joins the base θ_g^t to θ_i^t, one device's local
    training (M plays no part); `fleet` joins θ_g^t to θ_g^{t+M} and is the one that secure
    aggregation leaves possible. No segment crosses a hardening: a fleet segment may end at the
    aggregate before it and another begin behind it. `first_round` and `last_round` bound t, both
    included. Raises `DistillationError` where nothing fits, saying what would.
    """
    if kind not in get_args(SegmentKind):
        raise DistillationError(
            f"unknown segment kind {kind!r}; choose one of {', '.join(get_args(SegmentKind))}"
        )
    if rounds_ahead < 1:
        raise DistillationError(f"rounds_ahead is {rounds_ahead}; it must be at least 1")

    def in_window(t: int) -> bool:
        return t >= first_round and (last_round is None or t <= last_round)

    def hardened_between(t: int, end: int) -> bool:
        return any(t < r < end for r in trajectories.unhardened)

    segments: list[Segment] = []
    if kind == "fleet":
        ends = {**trajectories.global_path, **trajectories.unhardened}
        segments = [
            Segment(weights, ends[end], f"fleet {t} to {end}", t)
            for t, weights in sorted(trajectories.global_path.items())
            for end in [t + rounds_ahead]
            if in_window(t) and end in ends and not hardened_between(t, end)
        ]
    for device, path in sorted(trajectories.device_path.items()):
        for t, weights in sorted(path.items()):
            if not in_window(t):
                continue
            end = t + rounds_ahead
            if kind == "device" and end in path and not hardened_between(t, end + 1):
                segments.append(Segment(weights, path[end], f"device {device} {t} to {end}", t))
            elif kind == "local" and t in trajectories.global_path:
                start = trajectories.global_path[t]
                segments.append(Segment(start, weights, f"local {device} {t}", t))

    # A segment of length zero has no direction to match, and the loss divides by its length.
    segments = [s for s in segments if not np.array_equal(s.start, s.target)]
    if not segments:
        raise DistillationError(_what_is_missing(trajectories, kind, rounds_ahead))
    return tuple(segments)


def _what_is_missing(trajectories: Trajectories, kind: SegmentKind, rounds_ahead: int) -> str:
    need = {
        "device": f"a device with updates in two rounds {rounds_ahead} apart",
        "local": "a device's update together with the base of its round",
        "fleet": f"global weights of two rounds {rounds_ahead} apart",
    }[kind]
    devices = sum(1 for path in trajectories.device_path.values() if path)
    return (
        f"no {kind!r} segment in the chosen rounds: it needs {need}. There are global weights of "
        f"rounds {sorted(trajectories.global_path)} and updates of {devices} devices; run more "
        "rounds, or choose another kind, rounds_ahead or window"
    )
