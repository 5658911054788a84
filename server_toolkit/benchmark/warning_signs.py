"""What somebody who decides by the figures has to be told first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server_toolkit.benchmark.goals import where
from server_toolkit.benchmark.results import (
    SMALLEST_GAIN,
    Place,
    Results,
    Row,
    difference,
    recovery,
)

MASKED_SHARE = 0.02  # of the judged images, broken by Square after the gradients' attacks failed
WIDE_INTERVAL = 0.16  # of AutoAttack accuracy, both sides together


def find_warnings(
    results: Results,
    *,
    work: Mapping[str, Any],
    remarks: Sequence[str],
    failures: Sequence[tuple[str, str]],
) -> list[str]:
    """Return sentences, the gravest first."""
    warnings = list(_failures(failures))
    if work["done"] < work["total"]:
        warnings.append(
            f"Unfinished: {work['done']} of {work['total']} pieces of work are done, so arms and "
            "seeds are missing. Run the same command again to carry on."
        )
    warnings += _beaten(results)
    for place in results.places():
        warnings += _at(results, place)
    warnings += remarks
    if len(work["made_with"]) > 1:
        warnings.append(f"Not all made alike: {'; '.join(work['made_with'])}.")
    warnings += _precision(list(results.rows.values()))
    return warnings


def _failures(failures: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield one sentence an error; many pieces may fail for one reason."""
    by_error: dict[str, list[str]] = {}
    for label, error in failures:
        by_error.setdefault(error, []).append(label)
    for error, labels in by_error.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        yield f"{labels[0]}{more} failed: {error}"


def _beaten(results: Results) -> Iterator[str]:
    """Yield in how many comparisons a method loses to its control."""
    found = [
        gap
        for row in results.rows.values()
        for control in [results.control_of(row)]
        if control is not None
        for gap in [difference(row, control, "autoattack")]
        if gap is not None
    ]
    below = [gap for gap in found if gap.seeds.mean < 0]
    if below:
        sure = sum(gap.verdict.startswith("worse") for gap in below)
        yield (
            f"The control beats its method in {len(below)} of {len(found)} comparisons under "
            f"AutoAttack, in {sure or 'none'} of them by more than the images' own spread."
        )


def _at(results: Results, place: Place) -> Iterator[str]:
    floor, ceiling = results.find(place, "fedavg"), results.find(place, "client_at")
    for row in results.at(place):
        yield from _control_beats(results, row)
    if floor is not None and ceiling is not None:
        share = recovery(results, ceiling)
        if share is not None and share.undefined:
            seeds = ", ".join(map(str, share.undefined))
            yield (
                f"{where(place)}: client_at gains less than {100 * SMALLEST_GAIN:.0f} AutoAttack "
                f"points over fedavg with seed {seeds}; recovery is undefined there."
            )
    yield from _masked(results, place)


def _masked(results: Results, place: Place) -> Iterator[str]:
    """Name, in one sentence, all models that Square breaks where gradients could not."""
    shares: list[float] = []
    models: dict[str, list[str]] = {}
    for row in results.at(place):
        for seed in row.seeds:
            broken = seed.left_after.get("fab-t", 0) - seed.left_after.get("square", 0)
            share = broken / len(seed.correct["autoattack"])
            if share > MASKED_SHARE:
                shares.append(100 * share)
                models.setdefault(row.title, []).append(str(seed.seed))
    if shares:
        low, high = (f"{share:.0f}" for share in (min(shares), max(shares)))
        names = ", ".join(
            f"{title} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
            for title, seeds in models.items()
        )
        yield (
            f"{where(place)}: Square, which sees no gradients, broke "
            f"{low if low == high else f'{low} to {high}'} % of the judged images where gradient "
            "attacks had failed; the gradients may be masked and the true robustness lower still. "
            f"So it was with {names}."
        )


def _control_beats(results: Results, row: Row) -> Iterator[str]:
    control = results.control_of(row)
    robust = None if control is None else difference(row, control, "autoattack")
    if control is None or robust is None or robust.seeds.mean >= 0:
        return
    apart = robust.verdict.startswith("worse")
    said = f"the method is {robust.verdict}" if apart else "chance may explain it"
    yield (
        f"{where(row.place)}: the control {control.title} beats {row.title} by "
        f"{-100 * robust.seeds.mean:.1f} AutoAttack points; {said}."
    )


def _precision(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    if any(len(row.seeds) < 2 for row in rows):
        yield "Some arms have one seed only: nothing is known of how they vary between runs."
    widths = [high - low for row in rows for low, high in [row.pooled("autoattack").interval]]
    widest = max(widths)
    if widest > WIDE_INTERVAL:
        yield (
            f"AutoAttack accuracies rest on few images: the 95 % interval of the widest spans "
            f"{100 * widest:.0f} points."
        )
