"""What a local training step costs on this machine: our program against eager PyTorch.

    python benchmarks/edge_step.py --json edge_step.json

Every measurement is a fresh process. The arms take turns, so that a disturbance hits all of them;
compare only numbers of one run. A step is the whole of it: taking a batch out of the data set,
forward, backward, SGD with momentum.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from models import ModelSpec, layout_of

# Without these, glibc gives freed activations back to the kernel and faults them in again, which
# costs eager about a third. An untuned baseline flatters everything else.
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
WARM_UP_STEPS = 3


def arms(micro_batches: list[int]) -> dict[str, dict[str, str]]:
    """Return the environment of each arm's process."""
    return {
        "eager": {},
        "eager, tuned malloc": TUNED_MALLOC,
        **{f"program, micro-batch {m}": {} for m in micro_batches},
    }


def step_times(stamps: list[float]) -> list[float]:
    """Return the milliseconds between stamps, after the first steps."""
    return [1e3 * (b - a) for a, b in itertools.pairwise(stamps)][WARM_UP_STEPS:]


def run_program(path: str, options: dict[str, Any]) -> list[float]:
    """Train over the program with numpy-level code only; returns milliseconds a step."""
    from edge_sdk.runtime import ProgramFile
    from edge_sdk.training import Dataset, train

    file = ProgramFile.load(path)
    images, labels = examples(file.spec, options)
    start = np.zeros(layout_of(file.spec).size, np.float32)
    rng = np.random.default_rng(0)
    for parameter, place in file.layout.slices():
        start[place] = rng.normal(0, 0.05, parameter.size) + parameter.name.endswith("norm.weight")
    stamps: list[float] = []
    train(
        file,
        start,
        Dataset(images, labels, file.spec.classes),
        epochs=1,
        batch_size=options["batch_size"],
        learning_rate=0.01,
        momentum=0.9,
        seed=0,
        threads=options["threads"],
        on_step=lambda *_: stamps.append(time.perf_counter()),
    )
    return step_times(stamps)


def run_eager(spec: ModelSpec, options: dict[str, Any]) -> list[float]:
    """Train the same network in eager PyTorch; returns milliseconds a step."""
    import torch

    from models.networks import build_model

    torch.set_num_threads(options["threads"])
    model = build_model(spec, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = examples(spec, options)
    stamps: list[float] = []
    for batch in np.random.default_rng(0).permutation(len(images)).reshape(options["steps"], -1):
        logits = model(torch.from_numpy(images[batch]))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stamps.append(time.perf_counter())
    return step_times(stamps)


def examples(spec: ModelSpec, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return random images and labels, `steps` batches of them."""
    rng = np.random.default_rng(1)
    count = options["steps"] * options["batch_size"]
    shape = (count, spec.channels, spec.image_size, spec.image_size)
    return rng.random(shape, dtype=np.float32), rng.integers(spec.classes, size=count)


def peak_rss_mb() -> float:
    """Return the largest resident size of this process image (getrusage's outlives an exec)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def child(arm: str, path: str, options: dict[str, Any]) -> None:
    """Run one arm and print its result as JSON."""
    if arm.startswith("program"):
        times = run_program(path, options)
    else:
        times = run_eager(ModelSpec.from_dict(options["spec"]), options)
    print(json.dumps({"step_ms": float(np.median(times)), "peak_rss_mb": peak_rss_mb()}))


def measure(arm: str, path: str, options: dict[str, Any]) -> dict[str, float]:
    """Run one arm in a process of its own."""
    threads = str(options["threads"])
    environment = os.environ | arms(options["micro_batches"])[arm] | {"OMP_NUM_THREADS": threads}
    command = [sys.executable, __file__, "--child", json.dumps([arm, path, options])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Export the programs, let the arms take turns, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="a process")
    parser.add_argument("--repeats", type=int, default=3, help="processes an arm")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*json.loads(args.child))
        return

    from edge_sdk.export import training_program

    spec = ModelSpec(
        channels=args.channels,
        image_size=args.image_size,
        classes=10,
        width=args.width,
        mean=(0.5,) * args.channels,
        std=(0.25,) * args.channels,
    )
    names = ("batch_size", "micro_batches", "threads", "steps")
    options = {name: getattr(args, name) for name in names} | {"spec": spec.to_dict()}
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms(args.micro_batches)}
    with tempfile.TemporaryDirectory() as folder:
        paths = {arm: f"{folder}/{arm.split()[-1]}.tsp" for arm in found}
        for micro_batch in args.micro_batches:
            file = training_program(spec, micro_batch=micro_batch)
            file.save(paths[f"program, micro-batch {micro_batch}"])
        for _ in range(args.repeats):
            for arm, results in found.items():
                results.append(measure(arm, paths[arm], options))

    best = {
        arm: {
            "step_ms": min(r["step_ms"] for r in results),
            "step_ms_repeats": [r["step_ms"] for r in results],
            "peak_rss_mb": max(r["peak_rss_mb"] for r in results),
        }
        for arm, results in found.items()
    }
    tuned: Any = best["eager, tuned malloc"]
    for row in best.values():
        row["time_over_tuned_eager"] = row["step_ms"] / tuned["step_ms"]
        row["memory_over_tuned_eager"] = row["peak_rss_mb"] / tuned["peak_rss_mb"]
    print(f"{'':26}{'ms/step':>9}{'x':>7}{'peak MB':>10}{'x':>7}")
    for arm, row in best.items():
        times = f"{row['step_ms']:9.2f}{row['time_over_tuned_eager']:7.2f}"
        print(f"{arm:26}{times}{row['peak_rss_mb']:10.0f}{row['memory_over_tuned_eager']:7.2f}")
    if args.json:
        result = {"machine": platform.machine(), "cpus": os.cpu_count(), **options, "arms": best}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
