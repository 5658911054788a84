"""How long one round of a simulated federation takes, engine by engine.

The same devices train the same epoch on the devices' own runtime, one after the other, and in
torch: one after the other, and stacked into one network, so and so many at a time. Engines take
turns; a figure is the median over the repetitions. Where there is one, `--device cuda` measures a
GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sdk.training import Dataset, make_partition
from models import ModelSpec
from models.networks import build_model, flat_parameters
from server_toolkit.datasets import load_dataset
from server_toolkit.simulate import FederationSettings
from server_toolkit.simulate.engines import make_engine
from server_toolkit.simulate.local import LocalEngine, LocalJob, LocalResult

NATIVE, ALONE = "native", "torch, one after the other"


def shares(images: Dataset, devices: int, count: int) -> list[Dataset]:
    """Return what each device has: Dirichlet shares, so that stacks are of uneven devices."""
    names = [str(i) for i in range(devices)]
    pool = np.random.default_rng(0).permutation(len(images))[:count]
    parts = make_partition(images.labels, names, kind="dirichlet", alpha=2.0, seed=0, indices=pool)
    return [images.subset(part) for part in parts.values()]


def engines(spec: ModelSpec, args: argparse.Namespace) -> dict[str, LocalEngine]:
    """Return the engines by name."""
    options: dict[str, Any] = dict(
        epochs=1,
        batch_size=args.batch_size,
        learning_rate=0.02,
        objective=args.objective,
        attack_steps=args.attack_steps,
        workers=args.workers,
        threads=args.threads,
    )
    found = {}
    if args.device == "cpu":
        found[NATIVE] = make_engine(spec, FederationSettings(engine="native", **options))
    for together in args.together:
        name = ALONE if together == 1 else f"torch, {together} stacked"
        settings = FederationSettings(
            engine="stacked", together=together, device=args.device, **options
        )
        found[name] = make_engine(spec, settings)
    return found


def timed(engine: LocalEngine, jobs: list[LocalJob]) -> tuple[float, list[LocalResult]]:
    """Return the seconds of one round's training and what came of it."""
    began = time.perf_counter()
    results = engine.train(jobs)
    return time.perf_counter() - began, results


def furthest(
    jobs: list[LocalJob], ours: list[LocalResult], theirs: list[LocalResult]
) -> list[float]:
    """Return how far apart each device's two updates are, as a part of the update."""
    return sorted(
        float(np.linalg.norm(a.weights - b.weights) / np.linalg.norm(b.weights - job.start))
        for job, a, b in zip(jobs, ours, theirs, strict=True)
    )


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="directory of the data set's files")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--images", type=int, default=1200, help="of all devices together")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--objective", choices=("plain", "pgd"), default="plain")
    parser.add_argument("--attack-steps", type=int, default=7)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="of the native engine")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(args.threads)

    data = load_dataset(args.dataset, args.data)
    _, channels, side, _ = data.train.pixels.shape
    spec = ModelSpec(
        channels=channels, image_size=side, classes=data.train.classes, width=args.width,
        mean=data.mean, std=data.std,
    )  # fmt: skip
    start = flat_parameters(build_model(spec, seed=0))
    jobs = [
        LocalJob(f"device-{i}", start, share, seed=i)
        for i, share in enumerate(shares(data.train, args.devices, args.images))
    ]
    found = engines(spec, args)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    last: dict[str, list[LocalResult]] = {}
    for repetition in range(args.repeat + 1):
        for name, engine in found.items():
            taken_s, last[name] = timed(engine, jobs)
            if repetition:  # the first time everything is loaded and warmed
                seconds[name].append(taken_s)
    reference = next(iter(found))
    rows = []
    for name, times in seconds.items():
        apart = furthest(jobs, last[name], last[reference])
        rows.append(
            {
                "engine": name,
                "round_s": statistics.median(times),
                "all_s": times,
                "of_first": statistics.median(
                    a / b for a, b in zip(times, seconds[reference], strict=True)
                ),
                "median_distance": statistics.median(apart),
                "largest_distance": apart[-1],
            }
        )
    print(f"{'engine':30} {'round':>9} {'of first':>9} {'updates apart, median and largest':>36}")
    for row in rows:
        print(
            f"{row['engine']:30} {row['round_s']:7.3f} s {row['of_first']:9.2f} "
            f"{row['median_distance']:>22.1e} {row['largest_distance']:>13.1e}"
        )
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        machine = {"machine": platform.machine(), "torch": torch.__version__}
        args.json.write_text(json.dumps({"settings": settings, **machine, "engines": rows}) + "\n")


if __name__ == "__main__":
    main()
