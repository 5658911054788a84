"""Which rounds a distillation takes its segments from, and the statistics that can choose them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from models.layout import Flat
from server_toolkit.distill.segments import Trajectories
from server_toolkit.errors import DistillationError

WindowKind = Literal["rounds", "early", "late", "auto"]

EARLY_OR_LATE_SHARE = 1 / 3
SCORE_SHARE = 0.25  # of the best round's score; below it a round does not join the window


@dataclass(frozen=True)
class RoundStatistics:
    """How far and how surely the fleet moved in one round.

    `length` is |θ_g^{t+1} − θ_g^t|. `turn` is the cosine between this round's movement and the
    next one's, 1 for straight on and 0 for a random walk. `signal` is |mean update| over the
    devices' spread around it, the root of the summed squared deviations over n − 1. Both are None
    where they cannot be known. `trust`, from 0 to 1, is the share of the movement that is no
    noise, and `score` = `length` × `trust`.
    """

    round: int
    length: float
    turn: float | None
    devices: int
    signal: float | None
    trust: float
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; devices in full agreement have no finite signal: None."""
        values = asdict(self)
        if self.signal is not None and math.isinf(self.signal):
            values["signal"] = None
        return values


@dataclass(frozen=True)
class Window:
    """The start rounds of the segments, both included, and why these."""

    first: int
    last: int
    reason: str


def round_statistics(trajectories: Trajectories) -> tuple[RoundStatistics, ...]:
    """Return the statistics of every round whose start and end are known, in order.

    Trust comes from the devices where at least two reported: with n updates of mean m and spread
    s, |m|² overestimates the squared length of what they have in common by s²/n, so trust is
    1 − s²/(n |m|²). Where a round has fewer (secure aggregation, one device) it is the mean cosine
    to the movements before and after, for noise has no direction. Negative values count as 0. A
    single round without neighbours is trusted.
    """
    ends = {**trajectories.global_path, **trajectories.unhardened}
    steps: dict[int, Flat] = {
        t: ends[t + 1] - start for t, start in trajectories.global_path.items() if t + 1 in ends
    }
    lengths = {t: _norm(step) for t, step in steps.items()}
    turns = {
        t: _cosine(step, steps[t + 1])
        for t, step in steps.items()
        if t + 1 in steps and lengths[t] > 0 and lengths[t + 1] > 0
    }
    statistics = []
    for t in sorted(steps):
        if lengths[t] == 0:
            continue
        devices, signal, trust = _agreement(trajectories, t)
        if trust is None:
            near = [turns[n] for n in (t - 1, t) if n in turns]
            trust = max(0.0, sum(near) / len(near)) if near else 1.0
        statistics.append(
            RoundStatistics(
                round=t,
                length=lengths[t],
                turn=turns.get(t),
                devices=devices,
                signal=signal,
                trust=trust,
                score=lengths[t] * trust,
            )
        )
    return tuple(statistics)


def _agreement(trajectories: Trajectories, t: int) -> tuple[int, float | None, float | None]:
    """Return how many devices reported, their signal, and the trust that it gives."""
    base = trajectories.global_path[t]
    ends = [path[t] for path in trajectories.device_path.values() if t in path]
    if len(ends) < 2:
        return len(ends), None, None
    # Sums over one update at a time: a thousand devices are not held twice.
    mean = np.zeros(base.shape, np.float64)
    squares = 0.0
    for end in ends:
        update = end - base
        mean += update
        squares += _norm(update) ** 2
    mean /= len(ends)
    common = float(mean @ mean)
    spread2 = max(0.0, squares - len(ends) * common) / (len(ends) - 1)
    if common == 0:
        return len(ends), 0.0, 0.0
    signal = math.inf if spread2 == 0 else math.sqrt(common / spread2)
    return len(ends), signal, max(0.0, 1 - spread2 / (len(ends) * common))


def choose_window(
    kind: WindowKind,
    trajectories: Trajectories,
    *,
    first_round: int = 0,
    last_round: int | None = None,
) -> Window:
    """Return the rounds that segments may start in.

    `rounds` are those given. `early` and `late` are the first and the last third of the recorded
    rounds (difficulty, Guo et al. 2024: few images learn from the early part, many from the late
    one). `auto` takes the round with the highest score and its neighbours on both sides as long
    as theirs is at least a quarter of it. Raises `DistillationError` where there is nothing to
    choose from.
    """
    if kind not in get_args(WindowKind):
        raise DistillationError(f"unknown window {kind!r}; {', '.join(get_args(WindowKind))}")
    if kind == "rounds":
        last = max(trajectories.global_path) if last_round is None else last_round
        return Window(first_round, last, "as set by first_round and last_round")
    statistics = round_statistics(trajectories)
    if not statistics:
        raise DistillationError(
            f"window {kind!r} needs the weights of two rounds in a row that differ; run more rounds"
        )
    rounds = [s.round for s in statistics]
    count = max(1, round(len(rounds) * EARLY_OR_LATE_SHARE))
    if kind == "early":
        return Window(rounds[0], rounds[count - 1], "the first third of the recorded rounds")
    if kind == "late":
        return Window(rounds[-count], rounds[-1], "the last third of the recorded rounds")
    return _around_the_best(statistics)


def _around_the_best(statistics: Sequence[RoundStatistics]) -> Window:
    scores = [s.score for s in statistics]
    best = int(np.argmax(scores))
    enough = SCORE_SHARE * scores[best]
    first = last = best
    while first > 0 and scores[first - 1] >= enough:
        first -= 1
    while last + 1 < len(scores) and scores[last + 1] >= enough:
        last += 1
    return Window(
        statistics[first].round,
        statistics[last].round,
        f"round {statistics[best].round} moved surest (score {scores[best]:.3g}); "
        f"its neighbours reach {SCORE_SHARE:.0%} of that",
    )


def curriculum_end(*, first: int, last: int, rounds: int, until: float, done: float) -> int:
    """Return the last start round of a curriculum when the share `done` of the run is over.

    It begins with `rounds` rounds from `first` and grows by whole rounds, linearly, to `last` at
    `until`. 0 `rounds` mean no curriculum.
    """
    whole = last - first + 1
    if rounds == 0 or rounds >= whole:
        return last
    share = min(1.0, done / until)
    return first + rounds - 1 + math.floor(share * (whole - rounds))


def _norm(vector: Flat) -> float:
    return float(np.linalg.norm(vector.astype(np.float64, copy=False)))


def _cosine(first: Flat, second: Flat) -> float:
    return float(first.astype(np.float64) @ second.astype(np.float64)) / (
        _norm(first) * _norm(second)
    )
