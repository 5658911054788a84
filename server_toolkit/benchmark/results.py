"""From finished pieces to figures: one row a cell, with intervals, costs and recovery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server_toolkit.benchmark.arms import Arm
from server_toolkit.benchmark.plan import Cell
from server_toolkit.benchmark.statistics import (
    Spread,
    over_seeds,
    paired_over_images,
    pooled,
    worst_class,
)
from server_toolkit.benchmark.store import Store
from server_toolkit.robust.evaluation.accuracy import Accuracy, by_class, overall

Mask = npt.NDArray[np.bool_]

MEASURES = ("clean", "pgd", "autoattack")
SMALLEST_GAIN = 0.05  # of client_at over fedavg, below which a share of it says nothing

Place = tuple[str, str, str, float]  # data set, network, partition, epsilon
RowKey = tuple[str, str, str, float, str, int]  # and the arm with its server images


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One finished cell: which images it got right, and what it cost."""

    seed: int
    correct: Mapping[str, Mask]
    labels: npt.NDArray[np.int64]
    left_after: Mapping[str, int]
    passes: int
    device_cpu_s: float
    server_s: float

    def accuracy(self, measure: str) -> Accuracy:
        """Return the accuracy over all images of a measure."""
        return overall(self.correct[measure])

    def by_class(self, measure: str, classes: int) -> tuple[Accuracy, ...]:
        """Return the accuracy of every class."""
        correct = self.correct[measure]
        return by_class(correct, self.labels[: len(correct)], classes)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm at one place over all its seeds."""

    dataset: str
    network: str
    partition: str
    epsilon: float
    arm: Arm
    server_images: int
    classes: int
    seeds: tuple[SeedResult, ...]

    @property
    def place(self) -> Place:
        """Where rows may be compared."""
        return self.dataset, self.network, self.partition, self.epsilon

    @property
    def title(self) -> str:
        """The arm's name with the size of its server set."""
        return f"{self.arm.name} ({self.server_images})" if self.server_images else self.arm.name

    def values(self, measure: str) -> dict[int, float]:
        """Return the accuracy of every seed."""
        return {seed.seed: seed.accuracy(measure).value for seed in self.seeds}

    def spread(self, measure: str) -> Spread:
        """Return mean and interval over seeds."""
        return over_seeds(list(self.values(measure).values()))

    def pooled(self, measure: str) -> Accuracy:
        """Return the accuracy over the images of all seeds together."""
        return pooled([seed.accuracy(measure) for seed in self.seeds])

    def worst_class(self, measure: str) -> tuple[int, Accuracy]:
        """Return the worst class over all seeds, and its accuracy."""
        return worst_class([seed.by_class(measure, self.classes) for seed in self.seeds])


class Results:
    """All rows of a benchmark, found by place, arm and server images."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {(*row.place, row.arm.name, row.server_images): row for row in rows}

    def places(self) -> list[Place]:
        """Return where arms were compared, in order."""
        return list(dict.fromkeys(row.place for row in self.rows.values()))

    def at(self, place: Place) -> list[Row]:
        """Return the rows of a place."""
        return [row for row in self.rows.values() if row.place == place]

    def find(self, place: Place, arm: str, server_images: int = 0) -> Row | None:
        """Return a row, None where it was not measured."""
        return self.rows.get((*place, arm, server_images))

    def control_of(self, row: Row) -> Row | None:
        """Return the row that a method has to beat."""
        if row.arm.control is None:
            return None
        return self.find(row.place, row.arm.control, row.server_images)


def collect(cells: Iterable[Cell], store: Store, classes: Mapping[str, int]) -> Results:
    """Return the rows of all cells that are finished; `classes` counts each data set's."""
    found: dict[RowKey, list[tuple[Cell, SeedResult]]] = {}
    for cell in cells:
        if store.done(cell.evaluation):
            key = (
                cell.dataset,
                cell.network,
                cell.partition,
                cell.epsilon,
                cell.arm.name,
                cell.server_images,
            )
            found.setdefault(key, []).append((cell, _seed_result(cell, store)))
    return Results(
        Row(
            dataset=cell.dataset,
            network=cell.network,
            partition=cell.partition,
            epsilon=cell.epsilon,
            arm=cell.arm,
            server_images=cell.server_images,
            classes=classes[cell.dataset],
            seeds=tuple(sorted((result for _, result in pairs), key=lambda r: r.seed)),
        )
        for pairs in found.values()
        for cell in [pairs[0][0]]
    )


def _seed_result(cell: Cell, store: Store) -> SeedResult:
    tensors = store.tensors(cell.evaluation)
    federated = [store.record(piece).values for piece in cell.federated]
    server = [store.record(piece) for piece in cell.server]
    return SeedResult(
        seed=cell.seed,
        correct={name: tensors[name] for name in MEASURES},
        labels=tensors["labels"],
        left_after=store.record(cell.evaluation).values["left_after"],
        passes=sum(values["passes"] for values in federated),
        device_cpu_s=sum(values["device_cpu_s"] for values in federated),
        # What a clock shows on a GPU, processor time elsewhere: a busy machine stretches the clock.
        server_s=sum(r.cpu_s if r.device == "cpu" else r.wall_s for r in server),
    )


@dataclass(frozen=True)
class Recovery:
    """An arm's share of what adversarial training on the devices gains, a value a seed.

    `undefined` are the seeds where `client_at` gains less than `SMALLEST_GAIN`; they are left out,
    and `spread` is None where none remains.
    """

    by_seed: Mapping[int, float]
    undefined: tuple[int, ...]

    @property
    def spread(self) -> Spread | None:
        """Mean and interval over the seeds where it is defined."""
        return over_seeds(list(self.by_seed.values())) if self.by_seed else None


def recovery(results: Results, row: Row) -> Recovery | None:
    """Return (arm − fedavg) / (client_at − fedavg) in AutoAttack accuracy, a ratio a seed.

    None where `fedavg` or `client_at` was not measured there.
    """
    floor, ceiling = results.find(row.place, "fedavg"), results.find(row.place, "client_at")
    if floor is None or ceiling is None:
        return None
    ours, low, high = (r.values("autoattack") for r in (row, floor, ceiling))
    ratios, undefined = {}, []
    for seed in sorted(set(ours) & set(low) & set(high)):
        gain = high[seed] - low[seed]
        if gain < SMALLEST_GAIN:
            undefined.append(seed)
        else:
            ratios[seed] = (ours[seed] - low[seed]) / gain
    return Recovery(ratios, tuple(undefined))


@dataclass(frozen=True)
class Difference:
    """How far one row is above another: over seeds, and over the same images of all seeds."""

    seeds: Spread
    images: Spread

    @property
    def verdict(self) -> str:
        """What the difference allows to say: better, worse or undecided, and how surely.

        "better" and "worse" need an interval that leaves zero out: over seeds, or where one seed
        cannot say, over images. "better for these models" is a difference that the images show
        and the seeds do not yet.
        """
        by_seed, by_image = _side(self.seeds), _side(self.images)
        if by_seed:
            return by_seed
        if by_image and self.seeds.interval is None:
            return f"{by_image} (one seed)"
        if by_image:
            return f"{by_image} for these models, not proven over seeds"
        return "cannot be told apart"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "over_seeds": self.seeds.to_dict(),
            "over_images": self.images.to_dict(),
            "verdict": self.verdict,
        }


def difference(row: Row, other: Row, measure: str) -> Difference | None:
    """Return `row` minus `other`, paired by seed and by image; None without a common seed."""
    ours, theirs = ({s.seed: s for s in r.seeds} for r in (row, other))
    common = sorted(set(ours) & set(theirs))
    if not common:
        return None
    per_seed = [ours[s].accuracy(measure).value - theirs[s].accuracy(measure).value for s in common]
    masks = ([side[s].correct[measure] for s in common] for side in (ours, theirs))
    return Difference(over_seeds(per_seed), paired_over_images(*masks))


def _side(spread: Spread) -> str:
    if spread.interval is None:
        return ""
    low, high = spread.interval
    return "better" if low > 0 else "worse" if high < 0 else ""
