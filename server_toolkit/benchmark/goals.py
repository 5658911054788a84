"""The goals that the benchmark holds the methods to, decided by its own figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from server_toolkit.benchmark.results import Place, Results, difference, recovery
from server_toolkit.benchmark.statistics import in_points, rounded

Status = Literal["met", "not met", "undecided"]

RECOVERY_WANTED = 0.6
CLEAN_LOSS_ALLOWED = 0.05
GAIN_OVER_CONTROL = 0.03
SIZES_OVER_CONTROL = (1, 10)
PUBLISHED_GAINS = {"convnet": 0.10, "alexnet": 0.17}
PUBLISHED_EPSILON = 2 / 255
DATASETS_NEEDED = 2


@dataclass(frozen=True)
class Finding:
    """One comparison that a goal rests on: the numbers in words, and whether they suffice."""

    where: str
    status: Status
    numbers: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"where": self.where, "status": self.status, "numbers": self.numbers}


@dataclass(frozen=True)
class Goal:
    """A goal in words, whether it is met, and why."""

    name: str
    statement: str
    status: Status
    summary: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "name": self.name,
            "statement": self.statement,
            "status": self.status,
            "summary": self.summary,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def judge_goals(results: Results) -> list[Goal]:
    """Return the three goals of the benchmark, each decided by means over seeds.

    The first two are wanted on at least two data sets; a data set counts where every attack size
    and network that was measured there suffices. Each partition is decided on its own.
    """
    goals = []
    for partition in dict.fromkeys(place[2] for place in results.places()):
        places = [place for place in results.places() if place[2] == partition]
        goals.append(
            _over_datasets(
                f"recovery without real images, {partition}",
                f"trajsyn_noise: recovery of at least {RECOVERY_WANTED} at no more than "
                f"{100 * CLEAN_LOSS_ALLOWED:.0f} points of clean accuracy below fedavg",
                places,
                lambda place: _recovery(results, place),
            )
        )
        goals.append(
            _over_datasets(
                f"above the control, {partition}",
                f"trajsyn_server_set above server_set_only by at least "
                f"{100 * GAIN_OVER_CONTROL:.0f} AutoAttack points at equal or better clean "
                "accuracy, with 1 and with 10 server images a class",
                places,
                lambda place: _above_control(results, place),
            )
        )
    goals.append(_published(results))
    return goals


def _over_datasets(
    name: str, statement: str, places: list[Place], find: Callable[[Place], Finding]
) -> Goal:
    findings = [(place[0], find(place)) for place in places]
    by_dataset: dict[str, list[Status]] = {}
    for dataset, finding in findings:
        if finding.status != "undecided":
            by_dataset.setdefault(dataset, []).append(finding.status)
    met = [d for d, statuses in by_dataset.items() if set(statuses) == {"met"}]
    summary = "measured on no data set"
    if by_dataset:
        summary = f"met on {len(met)} of {len(by_dataset)} data sets measured"
        if met:
            summary += f" ({', '.join(met)})"
    summary += f"; {DATASETS_NEEDED} are needed"
    status: Status = "met" if len(met) >= DATASETS_NEEDED else "not met"
    if status == "not met" and len(by_dataset) < DATASETS_NEEDED:
        status = "undecided"
    return Goal(name, statement, status, summary, tuple(f for _, f in findings))


def _recovery(results: Results, place: Place) -> Finding:
    ours, floor = results.find(place, "trajsyn_noise"), results.find(place, "fedavg")
    share = None if ours is None else recovery(results, ours)
    if ours is None or floor is None or share is None:
        return Finding(where(place), "undecided", "trajsyn_noise, fedavg or client_at missing")
    spread = share.spread
    if spread is None:
        return Finding(
            where(place), "undecided", "client_at gains too little over fedavg for a ratio"
        )
    loss = floor.spread("clean").mean - ours.spread("clean").mean
    enough = _reaches(spread.mean, RECOVERY_WANTED) and _reaches(-loss, -CLEAN_LOSS_ALLOWED)
    text = (
        f"recovery {rounded(spread.mean, 2)}{_range(spread.interval, 1)}, "
        f"clean {in_points(-loss)} points"
    )
    return Finding(where(place), "met" if enough else "not met", text)


def _above_control(results: Results, place: Place) -> Finding:
    texts, enough = [], True
    for size in SIZES_OVER_CONTROL:
        ours = results.find(place, "trajsyn_server_set", size)
        control = results.find(place, "server_set_only", size)
        if ours is None or control is None:
            return Finding(where(place), "undecided", f"no figures with {size} a class")
        robust = difference(ours, control, "autoattack")
        clean = difference(ours, control, "clean")
        if robust is None or clean is None:
            return Finding(where(place), "undecided", f"no common seed with {size} a class")
        enough &= _reaches(robust.seeds.mean, GAIN_OVER_CONTROL) and _reaches(clean.seeds.mean, 0)
        texts.append(
            f"with {size} a class AutoAttack {in_points(robust.seeds.mean)}"
            f"{_range(robust.seeds.interval, 100)}, clean {in_points(clean.seeds.mean)} points"
        )
    return Finding(where(place), "met" if enough else "not met", "; ".join(texts))


def _published(results: Results) -> Goal:
    """Compare the gain over fedavg on CIFAR-10 with the claim of the paper, as a floor."""
    findings = []
    statuses: dict[str, list[Status]] = {}
    for place in results.places():
        dataset, network, _, epsilon = place
        wanted = PUBLISHED_GAINS.get(network.split("-")[0])
        floor = results.find(place, "fedavg")
        if dataset != "cifar10" or wanted is None or floor is None:
            continue
        if abs(epsilon - PUBLISHED_EPSILON) > 1e-9:
            continue
        gains = [
            (difference(row, floor, "autoattack"), row.title)
            for row in results.at(place)
            if row.arm.role == "method"
        ]
        known = [(d.seeds, title) for d, title in gains if d is not None]
        if not known:
            continue
        best, title = max(known, key=lambda pair: pair[0].mean)
        status: Status = "met" if _reaches(best.mean, wanted) else "not met"
        statuses.setdefault(network.split("-")[0], []).append(status)
        text = (
            f"best method {title} {in_points(best.mean)}{_range(best.interval, 100)} points, "
            f"{100 * wanted:+.0f} wanted"
        )
        findings.append(Finding(where(place), status, text))
    missing = [name for name in PUBLISHED_GAINS if name not in statuses]
    status, summary = _published_verdict(statuses, missing)
    return Goal(
        "published claim",
        "CIFAR-10 at ε = 2/255: at least +10 AutoAttack points over fedavg for the ConvNet and "
        "+17 for AlexNet",
        status,
        summary,
        tuple(findings),
    )


def _published_verdict(
    statuses: dict[str, list[Status]], missing: Iterable[str]
) -> tuple[Status, str]:
    failed = [name for name, found in statuses.items() if set(found) != {"met"}]
    unmeasured = ", ".join(missing)
    if failed:
        return "not met", f"not met by the {', '.join(failed)}"
    if not statuses:
        return "undecided", "CIFAR-10 at 2/255 was not run"
    if unmeasured:
        return "undecided", f"met by the {', '.join(statuses)}; not measured: {unmeasured}"
    return "met", "met by both networks"


def _reaches(value: float, wanted: float) -> bool:
    """Compare means of shares, whose last binary digit decides nothing."""
    return value >= wanted - 1e-9


def where(place: Place) -> str:
    """Return a place in words."""
    dataset, network, partition, epsilon = place
    return f"{dataset}, {network}, {partition}, ε = {in_255ths(epsilon)}"


def in_255ths(epsilon: float) -> str:
    """Return an attack size as people write it: 8/255, or 0.3."""
    steps = epsilon * 255
    return (
        f"{round(steps)}/255" if abs(steps - round(steps)) < 1e-6 and steps < 30 else f"{epsilon:g}"
    )


def _range(interval: tuple[float, float] | None, scale: float) -> str:
    if interval is None:
        return " (one seed)"
    low, high = (rounded(scale * end, 2 if scale == 1 else 1) for end in interval)
    return f" ({low} to {high})"
