"""One run of the robustness benchmark: plan, work, and the result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server_toolkit.benchmark.arms import choose_arms
from server_toolkit.benchmark.data import digest_of, load, spec_for
from server_toolkit.benchmark.document import RunFacts, make_document
from server_toolkit.benchmark.piece import Piece, in_order
from server_toolkit.benchmark.plan import Cell, Subject, SubjectPlan
from server_toolkit.benchmark.presets import Network, Preset, epsilons_of
from server_toolkit.benchmark.results import Results, collect
from server_toolkit.benchmark.runner import Progress, run_pieces
from server_toolkit.benchmark.store import Store
from server_toolkit.benchmark.workplace import Workshop


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """Everything that a run will do. `data` describes the data sets, `remarks` warn of them."""

    preset: Preset
    cells: tuple[Cell, ...]
    pieces: tuple[Piece, ...]
    sources: dict[str, tuple[str, Path | None]]
    data: tuple[dict[str, Any], ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """What a run gave: the document, and what the page needs beside it."""

    document: dict[str, Any]
    results: Results
    cells: tuple[Cell, ...]
    store: Store
    complete: bool


def plan_benchmark(
    preset: Preset, *, directory: Path | None, epsilons: tuple[float, ...] = ()
) -> BenchmarkPlan:
    """Load the data sets and plan all work, seed by seed, so that early results cover all arms.

    `epsilons` are for data sets whose threat model is not fixed. Raises `ConfigError` for data
    that is missing, damaged or does not fit.
    """
    arms = choose_arms(preset.arms)
    described, remarks, sources, subjects = [], [], {}, []
    for name in preset.datasets:
        data = load(name, directory)
        digest = digest_of(name, directory)
        sources[digest] = (name, directory)
        pool, partitions, remark = _server_sizes(preset, name, data.train.labels)
        remarks += ([data.remark] if data.remark else []) + remark
        chosen = epsilons_of(name, epsilons)
        described.append(
            {
                "dataset": name,
                "digest": digest,
                "classes": data.train.classes,
                "training_images": len(data.train),
                "test_images": len(data.test),
                "epsilons": list(chosen),
                "server_images": {k: list(v) for k, v in partitions.items()},
            }
        )
        for seed in preset.seeds:
            for network in preset.networks:
                subject = Subject(
                    dataset=name,
                    digest=digest,
                    network=_network_name(network),
                    spec=spec_for(data, network),
                    seed=seed,
                    epsilons=chosen,
                    partitions=partitions,
                    server_pool=pool,
                )
                subjects.append(subject)
    subjects.sort(key=lambda subject: preset.seeds.index(subject.seed))
    cells = tuple(
        cell
        for subject in subjects
        for cell in SubjectPlan(
            subject,
            fleet=preset.fleet,
            recipe=preset.recipe,
            judging=preset.judging,
            arms=arms,
        ).cells()
    )
    return BenchmarkPlan(
        preset=preset,
        cells=cells,
        pieces=tuple(in_order(cell.evaluation for cell in cells)),
        sources=sources,
        data=tuple(described),
        remarks=tuple(remarks),
    )


def run_benchmark(
    plan: BenchmarkPlan,
    *,
    work_directory: Path,
    progress: Progress,
    workers: int = 1,
    threads: int = 1,
    device: str = "cpu",
    budget_s: float | None = None,
) -> BenchmarkRun:
    """Do what is not done yet, for at most about `budget_s` seconds, and return all results.

    Raises `ConfigError` where another run holds the directory.
    """
    workshop = Workshop(
        directory=work_directory,
        sources=plan.sources,
        device=device,
        threads=threads,
        stop_at_s=None if budget_s is None else time.monotonic() + budget_s,
    )
    outcome = run_pieces(plan.pieces, workshop, workers=workers, progress=progress)
    store = Store(work_directory)
    classes = {str(entry["dataset"]): int(entry["classes"]) for entry in plan.data}
    results = collect(plan.cells, store, classes)
    labels = {piece.key: piece.label for piece in plan.pieces}
    facts = RunFacts(
        preset=plan.preset,
        data=plan.data,
        machine=_machine(device, workers, threads),
        remarks=plan.remarks,
        failures=[(labels[key], error) for key, error in outcome.failed.items()],
    )
    return BenchmarkRun(
        document=make_document(results, facts, plan.pieces, store),
        results=results,
        cells=plan.cells,
        store=store,
        complete=outcome.complete,
    )


def _server_sizes(
    preset: Preset, name: str, labels: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[int, dict[str, tuple[int, ...]], list[str]]:
    """Return the server's pool and the sizes that a data set allows, with a remark if it is small.

    The server gets at most half of the smallest class, so that devices have some of every class.
    """
    limit = int(np.bincount(labels).min()) // 2
    pool = min(preset.server_pool, limit)
    partitions = {
        partition: tuple(size for size in sizes if size <= pool)
        for partition, sizes in preset.partitions.items()
    }
    dropped = sorted({s for sizes in preset.partitions.values() for s in sizes if s > pool})
    if not dropped:
        return pool, partitions, []
    sizes = ", ".join(map(str, dropped))
    remark = (
        f"{name}: server sets of {sizes} images a class are left out; the smallest class has "
        f"{2 * limit} training images."
    )
    return pool, partitions, [remark]


def _network_name(network: Network) -> str:
    if network.architecture == "convnet":
        return f"convnet-{network.width}"
    return network.architecture


def _machine(device: str, workers: int, threads: int) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
    return {
        "device": device,
        "processor": name,
        "cpus": os.cpu_count(),
        "workers": workers,
        "threads": threads,
        "torch": torch.__version__,
        "software": f"trajsyn {importlib.metadata.version('trajsyn')}",
    }


def pieces_left(plan: BenchmarkPlan, store: Store) -> Iterator[tuple[str, int, int]]:
    """Yield for every kind of piece how many are done, and how many there are."""
    kinds = dict.fromkeys(piece.kind for piece in plan.pieces)
    for kind in kinds:
        own = [piece for piece in plan.pieces if piece.kind == kind]
        yield kind, sum(store.done(piece) for piece in own), len(own)
