"""Energy of a stretch of time from samples of power, or of an energy counter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
MIN_SAMPLES_INSIDE = 2  # below, the samples say nothing about the stretch


@dataclass(frozen=True)
class Trace:
    """Samples at `times_s` (monotonic, ascending) of watts, or of joules where `is_counter`."""

    times_s: Float64
    values: Float64
    is_counter: bool

    @classmethod
    def of(cls, samples: list[tuple[float, float]], *, is_counter: bool) -> Trace:
        """Make a trace of (time, value) pairs; of several at one time, the last counts."""
        pairs = dict(samples)
        times = sorted(pairs)
        return cls(
            np.array(times, np.float64),
            np.array([pairs[t] for t in times], np.float64),
            is_counter,
        )

    @property
    def interval_s(self) -> float | None:
        """The median time between samples."""
        return float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else None

    def power(self) -> tuple[Float64, Float64]:
        """Return times and watts; of a counter, the mean power between two samples."""
        if not self.is_counter:
            return self.times_s, self.values
        gaps = np.diff(self.times_s)
        return self.times_s[1:], np.diff(self.values) / gaps


@dataclass(frozen=True)
class Energy:
    """Joules and one standard deviation of what sampling may have missed."""

    joules: float
    uncertainty_j: float
    samples: int


def integrate(trace: Trace, start_s: float, end_s: float) -> Energy | None:
    """Return the energy of [start, end], None if fewer than two samples lie in it.

    Power is taken to run straight from sample to sample (trapezoid rule), between the samples
    around the edges too; a counter is read off the same way. Between two samples the power may
    have been anywhere between them, so each interval h with a change dP is uncertain by
    h / 2 * |dP| / sqrt(3); of a counter, only the intervals that the two edges cut are uncertain,
    by half of their energy / sqrt(3).
    """
    t, v = trace.times_s, trace.values
    inside = (t >= start_s) & (t <= end_s)
    if inside.sum() < MIN_SAMPLES_INSIDE or end_s <= start_s:
        return None
    if trace.is_counter:
        joules = float(np.interp(end_s, t, v) - np.interp(start_s, t, v))
        parts = [_cut_energy(trace, edge) / 2 for edge in (start_s, end_s)]
    else:
        edges = np.interp([start_s, end_s], t, v)
        times = np.concatenate([[start_s], t[inside], [end_s]])
        watts = np.concatenate([edges[:1], v[inside], edges[1:]])
        joules = float(np.trapezoid(watts, times))
        parts = list(np.diff(times) / 2 * np.abs(np.diff(watts)))
    spread = math.sqrt(sum(float(p) ** 2 for p in parts)) / math.sqrt(3)
    return Energy(joules, spread, int(inside.sum()))


def _cut_energy(trace: Trace, edge_s: float) -> float:
    """Return the energy of the counter's interval that `edge_s` cuts, 0 outside of the samples."""
    after = int(np.searchsorted(trace.times_s, edge_s))
    if not 0 < after < len(trace.times_s):
        return 0.0
    return float(trace.values[after] - trace.values[after - 1])


@dataclass(frozen=True)
class Idle:
    """Power of the device with nothing of ours running, and its standard uncertainty."""

    watts: float
    uncertainty_w: float


def idle_power(trace: Trace, stretches: list[tuple[float, float]]) -> Idle | None:
    """Return the mean power over the idle stretches, None if none has two samples.

    The uncertainty is the larger of what sampling missed and half of the stretches' difference.
    """
    found = []
    for start_s, end_s in stretches:
        energy = integrate(trace, start_s, end_s)
        if energy is not None:
            seconds = end_s - start_s
            found.append((energy.joules / seconds, energy.uncertainty_j / seconds, seconds))
    if not found:
        return None
    whole_s = sum(s for _, _, s in found)
    mean = sum(w * s for w, _, s in found) / whole_s
    sampling = math.sqrt(sum((u * s) ** 2 for _, u, s in found)) / whole_s
    drift = (max(w for w, _, _ in found) - min(w for w, _, _ in found)) / 2
    return Idle(mean, max(sampling, drift))


def above_idle(energy: Energy, idle: Idle, seconds: float) -> Energy:
    """Return what a stretch took beyond what the idle device would have taken in its time."""
    spread = math.hypot(energy.uncertainty_j, idle.uncertainty_w * seconds)
    return Energy(energy.joules - idle.watts * seconds, spread, energy.samples)
