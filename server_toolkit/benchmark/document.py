"""The benchmark's result as one JSON document; docs/benchmark.md describes its fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server_toolkit.benchmark.goals import Goal, judge_goals
from server_toolkit.benchmark.piece import Piece
from server_toolkit.benchmark.presets import Preset
from server_toolkit.benchmark.results import MEASURES, Results, Row, difference, recovery
from server_toolkit.benchmark.statistics import in_points, over_seeds
from server_toolkit.benchmark.store import Store
from server_toolkit.benchmark.warning_signs import find_warnings

FORMAT = "trajsyn-benchmark-robustness"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run knows beside its figures.

    `remarks` are warnings from before the work began, `failures` (label, error) of pieces.
    """

    preset: Preset
    data: Sequence[Mapping[str, Any]]
    machine: Mapping[str, Any]
    remarks: Sequence[str] = ()
    failures: Sequence[tuple[str, str]] = field(default_factory=tuple)


def make_document(
    results: Results, facts: RunFacts, pieces: Sequence[Piece], store: Store
) -> dict[str, Any]:
    """Return the whole result, JSON-ready; what is not finished is left out and said."""
    work = _work(pieces, store)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": work["done"] == work["total"],
        "preset": facts.preset.to_dict(),
        "data": list(facts.data),
        "machine": dict(facts.machine),
        "work": work,
        "warnings": find_warnings(
            results, work=work, remarks=facts.remarks, failures=facts.failures
        ),
        "goals": [goal.to_dict() for goal in _goals(results)],
        "rows": [_row(results, row) for row in results.rows.values()],
        "comparisons": list(_comparisons(results)),
        "failures": [{"piece": label, "error": error} for label, error in facts.failures],
    }


def _goals(results: Results) -> list[Goal]:
    return judge_goals(results) if results.rows else []


def _work(pieces: Sequence[Piece], store: Store) -> dict[str, Any]:
    """Return what was done and what it took, by kind of piece."""
    kinds: dict[str, dict[str, float]] = {}
    made_with = set()
    for piece in pieces:
        if store.done(piece):
            record = store.record(piece)
            made_with.add(f"{record.software} on {record.device}")
            kind = kinds.setdefault(piece.kind, {"pieces": 0, "cpu_s": 0.0, "wall_s": 0.0})
            kind["pieces"] += 1
            kind["cpu_s"] += record.cpu_s
            kind["wall_s"] += record.wall_s
    return {
        "done": sum(int(kind["pieces"]) for kind in kinds.values()),
        "total": len(pieces),
        "cpu_s": sum(kind["cpu_s"] for kind in kinds.values()),
        "wall_s": sum(kind["wall_s"] for kind in kinds.values()),
        "by_kind": kinds,
        "made_with": sorted(made_with),
    }


def _row(results: Results, row: Row) -> dict[str, Any]:
    return {
        **_place(row),
        "arm": row.arm.name,
        "title": row.title,
        "meaning": row.arm.meaning,
        "role": row.arm.role,
        "control": row.arm.control,
        "server_images": row.server_images,
        "measures": {name: _measure(row, name) for name in MEASURES},
        "recovery": _recovery(results, row),
        "cost": _cost(results, row),
        "seeds": [
            {
                "seed": seed.seed,
                **{name: seed.accuracy(name).value for name in MEASURES},
                "left_after": dict(seed.left_after),
                "device_passes": seed.passes,
                "device_cpu_s": seed.device_cpu_s,
                "server_s": seed.server_s,
            }
            for seed in row.seeds
        ],
    }


def _place(row: Row) -> dict[str, Any]:
    return {
        "dataset": row.dataset,
        "network": row.network,
        "partition": row.partition,
        "epsilon": row.epsilon,
    }


def _measure(row: Row, measure: str) -> dict[str, Any]:
    label, worst = row.worst_class(measure)
    return {
        **row.spread(measure).to_dict(),
        "pooled": row.pooled(measure).to_dict(),
        "worst_class": {"class": label, **worst.to_dict()},
    }


def _recovery(results: Results, row: Row) -> dict[str, Any] | None:
    share = recovery(results, row)
    if share is None:
        return None
    spread = share.spread
    return {
        "mean": None if spread is None else spread.mean,
        "interval": None if spread is None else spread.interval,
        "by_seed": {str(seed): value for seed, value in share.by_seed.items()},
        "undefined_seeds": list(share.undefined),
    }


def _cost(results: Results, row: Row) -> dict[str, Any]:
    """Return the cost on all devices together, beside that of `fedavg`, and that on the server."""
    floor = results.find(row.place, "fedavg")
    passes, seconds = _mean(s.passes for s in row.seeds), _mean(s.device_cpu_s for s in row.seeds)
    relative: dict[str, float | None] = {"passes": None, "seconds": None}
    if floor is not None:
        fedavg_passes = _mean(s.passes for s in floor.seeds)
        fedavg_seconds = _mean(s.device_cpu_s for s in floor.seeds)
        relative["passes"] = passes / fedavg_passes if fedavg_passes else None
        relative["seconds"] = seconds / fedavg_seconds if fedavg_seconds else None
    return {
        "device_passes": passes,
        "device_cpu_s": seconds,
        "relative_to_fedavg": relative,
        "server_s": _mean(s.server_s for s in row.seeds),
    }


def _mean(values: Iterable[float]) -> float:
    return over_seeds(list(values)).mean


def _comparisons(results: Results) -> Iterable[dict[str, Any]]:
    """Yield every method beside its control, and methods without real images beside `fedavg`."""
    for row in results.rows.values():
        control = results.control_of(row)
        if control is None:
            continue
        differences = {name: difference(row, control, name) for name in MEASURES}
        robust = differences["autoattack"]
        if robust is None:
            continue
        yield {
            **_place(row),
            "arm": row.arm.name,
            "control": control.arm.name,
            "server_images": row.server_images,
            **{n: d.to_dict() for n, d in differences.items() if d is not None},
            "sentence": (
                f"{row.title} against {control.title}: {in_points(robust.seeds.mean)} AutoAttack "
                f"points, {robust.verdict}"
            ),
        }
