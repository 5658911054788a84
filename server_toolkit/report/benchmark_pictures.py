"""The images that a benchmark's servers worked with, to look at on its page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server_toolkit.benchmark.plan import Cell
from server_toolkit.benchmark.results import Place
from server_toolkit.benchmark.robustness import BenchmarkRun

PICTURED_SERVER_SET = 10  # the size shown; more sizes would look alike


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """One set of synthetic images `(N, C, H, W) float32 in [0, 1]` and their classes."""

    dataset: str
    title: str
    meaning: str
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def pictures_of(run: BenchmarkRun) -> list[Pictures]:
    """Return what was made last for the first cell of every arm, one place a data set."""
    return [_pictures(cell, run) for cell in _pictured(run)]


def _pictured(run: BenchmarkRun) -> Iterator[Cell]:
    places: dict[str, Place] = {}
    seen = set()
    for cell in run.cells:
        here = (cell.dataset, cell.network, cell.partition, cell.epsilon)
        if not cell.proxies or not run.store.done(cell.proxies[0]):
            continue
        wanted = cell.server_images in (0, _pictured_size(run, cell))
        if places.setdefault(cell.dataset, here) == here and wanted:
            name = (cell.dataset, cell.arm.name)
            if name not in seen:
                seen.add(name)
                yield cell


def _pictured_size(run: BenchmarkRun, cell: Cell) -> int:
    sizes = {c.server_images for c in run.cells if c.dataset == cell.dataset} - {0}
    return PICTURED_SERVER_SET if PICTURED_SERVER_SET in sizes else min(sizes, default=0)


def _pictures(cell: Cell, run: BenchmarkRun) -> Pictures:
    # A schedule begins with random images, which show nothing of what a method makes.
    made = [piece for piece in cell.proxies if run.store.done(piece)]
    tensors = run.store.tensors(made[-1])
    loss = run.store.record(made[-1]).values["match_loss"]
    matched = "nothing matched" if loss is None else f"match loss {loss:.2f}"
    count = len(cell.proxies)
    which = f", set {len(made)} of {count} made on the way" if count > 1 else ""
    real = f", {cell.server_images} real images a class" if cell.server_images else ""
    return Pictures(
        dataset=cell.dataset,
        title=cell.arm.name,
        meaning=f"{cell.network}, {cell.partition}, seed {cell.seed}{real}{which}; {matched}",
        images=tensors["images"],
        labels=tensors["hard_labels"],
    )
