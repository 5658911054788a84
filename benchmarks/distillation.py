"""The exact gradient of trajectory matching, against a textbook loop that unrolls the student.

    python benchmarks/distillation.py --json distillation.json              # digits, enlarged
    python benchmarks/distillation.py --json distillation.json --data DIR   # and real photographs
    python benchmarks/distillation.py --json distillation.json --widths 32 --steps 10 30

An iteration is the whole of it: the student's K steps, the matching loss, its gradient with respect
to images, soft labels and step size, and an update of all three. Both arms start alike, and the
losses of all iterations are compared. Every measurement is a fresh process; the arms take turns.
docs/distillation.md defines every figure.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

WARM_UP = 1
RATES = {"images": 0.1, "label_logits": 0.1, "step_size": 1e-4}
SERVER_SETS = {1: ("fashion_mnist", "mnist"), 3: ("cifar10",)}
TEACHER_STEPS, TEACHER_RATE, STEP_SIZE, MOMENTUM = 20, 0.02, 0.01, 0.0
# Ours lets glibc keep freed memory; this does the same for the textbook loop, as a further arm.
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
ARMS_OF = {
    "cpu": ("ours", "unrolled", "unrolled_tuned"),
    "cuda": ("ours", "unrolled", "fast", "fast_in_float32"),
}


@dataclass(frozen=True)
class Measurement:
    """What one process does; batches are whole passes over `images` synthetic images."""

    arm: str
    width: int
    channels: int
    steps: int
    images: int
    iterations: int
    threads: int
    device: str
    data: str | None


def resident_mb(field: str) -> float:
    """Return VmRSS (now) or VmHWM (the most since the last reset) in MB of 2^20 bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; this benchmark needs Linux")


def forget_the_preparation() -> float:
    """Give freed memory back, reset the peak, and return what is resident."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets VmHWM
    return resident_mb("VmRSS")


def measure(what: Measurement) -> dict[str, Any]:
    """Return one process's times, memory and losses."""
    import torch

    from models import ModelSpec
    from models.networks import build_model, flat_parameters
    from server_toolkit.distill.freed_memory import freed_memory_kept
    from server_toolkit.distill.matching import FlatNetwork

    torch.set_num_threads(what.threads)
    side = 28 if what.channels == 1 else 32
    name, pixels, labels, mean, std = real_images(what, side)
    spec = ModelSpec(
        channels=what.channels, image_size=side, classes=10, width=what.width, mean=mean, std=std
    )
    # Everything is imported and prepared: what comes on top is the method's.
    module = build_model(spec, seed=0).to(what.device)
    start, target = teacher(module, pixels.to(what.device), labels.to(what.device))
    values = {
        "images": pixels[: what.images].to(what.device),
        "label_logits": 3 * torch.eye(10)[labels[: what.images]].to(what.device),
        "step_size": STEP_SIZE,
    }
    assert len(flat_parameters(module)) == len(start)
    batches = [torch.arange(what.images, device=what.device)] * what.steps
    if what.arm.startswith("unrolled"):
        iterate = unrolled_arm(module, start, target, batches)
    elif what.arm == "ours":
        iterate = our_arm(FlatNetwork(spec, device=what.device), [(start, target)], batches)
    else:
        low = torch.bfloat16 if what.arm == "fast" else None
        network = FlatNetwork(spec, device=what.device, product_dtype=low, compiled=True)
        iterate = our_arm(network, [(start, target)] * 4, batches)
    students = 4 if what.arm.startswith("fast") else 1
    on_gpu = what.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before_mb = torch.cuda.memory_allocated() / 2**20
    else:
        before_mb = forget_the_preparation()

    losses, wall, processor = [], [], []
    # As `distill` runs its iterations; the textbook loop gets the C library as it is.
    with nullcontext() if what.arm.startswith("unrolled") else freed_memory_kept():
        for _ in range(WARM_UP + what.iterations):
            begin = time.perf_counter(), time.process_time()
            losses.append(iterate(values))
            wall.append(time.perf_counter() - begin[0])
            processor.append(time.process_time() - begin[1])
    peak_mb = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident_mb("VmHWM")
    return {
        "data": name,
        "losses": losses,
        "wall_s": [seconds / students for seconds in wall[WARM_UP:]],
        "processor_s": [seconds / students for seconds in processor[WARM_UP:]],
        "before_mb": before_mb,
        "peak_mb": peak_mb,
        "own_mb": peak_mb - before_mb,
    }


def real_images(what: Measurement, side: int) -> tuple[str, Any, Any, Any, Any]:
    """Return a name, 500 images in [0, 1], their labels, and the usual mean and deviation."""
    import torch
    from torch.nn.functional import interpolate

    from server_toolkit.datasets import load_dataset
    from server_toolkit.errors import ConfigError

    for name in (*SERVER_SETS[what.channels], "digits"):
        if what.data is None and name != "digits":
            continue
        try:
            data = load_dataset(name, Path(what.data) if what.data else None)
        except ConfigError:
            if name == "digits":
                raise
            continue
        images = torch.from_numpy(data.train.pixels[:500]).float() / 255
        images = images.expand(-1, what.channels, -1, -1)
        if images.shape[2] != side:
            images = interpolate(images, size=(side, side), mode="bilinear")
        mean, std = (tuple(float(v) for v in values) for values in (data.mean, data.std))
        repeat = what.channels // len(mean)
        labels = torch.from_numpy(data.train.labels[:500])
        return name, images.contiguous(), labels, mean * repeat, std * repeat
    raise AssertionError("digits need no files")


def teacher(module: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    """Train `module` a little; return its flat weights before and after."""
    import torch

    def flat() -> Any:
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    start = flat()
    optimizer = torch.optim.SGD(module.parameters(), lr=TEACHER_RATE, momentum=0.9)
    for step in range(TEACHER_STEPS):
        batch = torch.arange(25 * step, 25 * step + 25, device=images.device) % len(images)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images[batch]), labels[batch]).backward()
        optimizer.step()
    return start, flat()


def updated(values: dict[str, Any], gradients: dict[str, Any]) -> None:
    """Move images, labels and step size against their gradients, of unit length each."""
    for name, gradient in gradients.items():
        length = gradient.norm() if hasattr(gradient, "norm") else abs(gradient)
        values[name] = values[name] - RATES[name] * gradient / length


def our_arm(network: Any, segments: list[tuple[Any, Any]], batches: list[Any]) -> Any:
    """Return a function that does an iteration of ours and returns its loss."""
    from server_toolkit.distill.matching import Student, match_each

    students = [Student(start, target, batches) for start, target in segments]

    def iterate(values: dict[str, Any]) -> float:
        matches = match_each(network, students=students, momentum=MOMENTUM, **values)
        names = ("images", "label_logits", "step_size")
        updated(values, {name: sum(getattr(m, name) for m in matches) for name in names})
        return sum(m.loss for m in matches) / len(matches)

    return iterate


def unrolled_arm(module: Any, start: Any, target: Any, batches: list[Any]) -> Any:
    """Return an iteration as the literature's code does it: one graph through all K steps."""
    import torch
    from torch.func import functional_call

    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]

    def iterate(values: dict[str, Any]) -> float:
        images = values["images"].detach().requires_grad_()
        label_logits = values["label_logits"].detach().requires_grad_()
        step_size = torch.as_tensor(values["step_size"], device=images.device)
        step_size = step_size.detach().clone().requires_grad_()
        weights = start.clone().requires_grad_()
        for batch in batches:
            pieces = weights.split([shape.numel() for shape in shapes])
            named = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
            logits = functional_call(module, named, (images[batch],))
            # torch's cross-entropy takes soft labels as they are
            loss = torch.nn.functional.cross_entropy(logits, label_logits[batch].softmax(dim=1))
            (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
            weights = weights - step_size * gradient
        match = (weights - target).square().sum() / (start - target).square().sum()
        found = torch.autograd.grad(match, (images, label_logits, step_size))
        names_of = ("images", "label_logits", "step_size")
        updated(values, dict(zip(names_of, (v.detach() for v in found), strict=True)))
        return match.item()

    return iterate


def in_fresh_process(what: Measurement) -> dict[str, Any]:
    """Run one measurement; stops with the process's own message where it fails."""
    command = [sys.executable, __file__, "--measure", json.dumps(dataclasses.asdict(what))]
    environment = os.environ | {"OMP_NUM_THREADS": str(what.threads)}
    if what.arm == "unrolled_tuned":
        environment |= TUNED_MALLOC
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{what} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an arm's figures out of its processes: the best median, the largest memory."""
    result: dict[str, Any] = {"runs": runs, "losses": runs[0]["losses"], "data": runs[0]["data"]}
    for clock in ("wall_s", "processor_s"):
        result[clock] = min(median(run[clock]) for run in runs)
    result["iterations_per_s"] = 1 / result["wall_s"]
    result["own_mb"] = max(run["own_mb"] for run in runs)
    return result


def compare(what: Measurement, repeats: int) -> dict[str, Any]:
    """Measure all arms of one configuration in turns."""
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS_OF[what.device]}
    for _ in range(repeats):
        for arm, found in runs.items():
            found.append(in_fresh_process(dataclasses.replace(what, arm=arm)))
    arms = {arm: summary(found) for arm, found in runs.items()}
    ours, unrolled = arms["ours"], arms["unrolled"]
    pairs = zip(ours["losses"], unrolled["losses"], strict=True)
    result = {
        "width": what.width,
        "channels": what.channels,
        "steps": what.steps,
        "images": what.images,
        "arms": arms,
        "loss_difference": max(abs(a - b) for a, b in pairs),
        "speed_ratio": unrolled["wall_s"] / ours["wall_s"],
        "processor_speed_ratio": unrolled["processor_s"] / ours["processor_s"],
        "memory_ratio": ours["own_mb"] / unrolled["own_mb"],
    }
    for arm in arms.keys() - {"ours", "unrolled"}:
        if arm == "unrolled_tuned":
            for key, clock in (("", "wall_s"), ("processor_", "processor_s")):
                result[f"{key}speed_ratio_to_tuned"] = arms[arm][clock] / ours[clock]
        else:
            result[f"{arm}_speed_ratio"] = unrolled["wall_s"] / arms[arm]["wall_s"]
    return result


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the top-level figures, each the worst over the networks that were measured."""
    found: dict[str, Any] = {"loss_difference": max(row["loss_difference"] for row in rows)}
    found["losses_agree"] = found["loss_difference"] < 1e-4
    for steps in sorted({row["steps"] for row in rows}):
        of_steps = [row for row in rows if row["steps"] == steps]
        for name, worst in (
            ("speed_ratio", min),
            ("processor_speed_ratio", min),
            ("processor_speed_ratio_to_tuned", min),
            ("memory_ratio", max),
        ):
            if name in of_steps[0]:
                found[f"{name}_k{steps}"] = worst(row[name] for row in of_steps)
    promised = [found[key] for key in ("speed_ratio_k10", "speed_ratio_k30") if key in found]
    if promised:
        found["speed_ratio"] = min(promised)
    own_mb = {
        (row["width"], row["channels"], row["steps"]): row["arms"]["ours"]["own_mb"] for row in rows
    }
    growth = [
        mb / own_mb[width, channels, 10]
        for (width, channels, steps), mb in own_mb.items()
        if steps == 50 and (width, channels, 10) in own_mb
    ]
    if growth:
        found["memory_flat"] = max(growth)
    return found


def show(row: dict[str, Any]) -> None:
    """Print one configuration's line."""
    ours, unrolled = row["arms"]["ours"], row["arms"]["unrolled"]
    print(
        f"width {row['width']:3} {row['channels']} ch K {row['steps']:2} {row['images']:3} images  "
        f"{ours['iterations_per_s']:7.3f} it/s, unrolled {unrolled['iterations_per_s']:7.3f}: "
        f"x{row['speed_ratio']:.2f} (processor time x{row['processor_speed_ratio']:.2f})  "
        f"{ours['own_mb']:6.0f} MB, {unrolled['own_mb']:6.0f}: x{row['memory_ratio']:.3f}  "
        f"losses to {row['loss_difference']:.0e}",
        flush=True,
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--data", type=Path, help="directory of mnist, fashion_mnist, cifar10")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--channels", type=int, nargs="+", choices=[1, 3], default=[1, 3])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 30, 50])
    parser.add_argument(
        "--images", type=int, help="synthetic images a batch; default 50 at width 32, 10 above"
    )
    parser.add_argument("--iterations", type=int, default=3, help="timed ones in a process")
    parser.add_argument("--repeats", type=int, default=2, help="processes an arm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=sorted(ARMS_OF), default="cpu")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Measurement(**json.loads(args.measure)))))
        return
    if args.json is None:
        parser.error("--json FILE is required")

    rows = []
    for width in args.widths:
        for channels in args.channels:
            for steps in args.steps:
                what = Measurement(
                    arm="",
                    width=width,
                    channels=channels,
                    steps=steps,
                    images=args.images or (50 if width <= 32 else 10),
                    iterations=args.iterations,
                    threads=args.threads,
                    device=args.device,
                    data=str(args.data) if args.data else None,
                )
                rows.append(compare(what, args.repeats))
                show(rows[-1])
    result = {
        **headline(rows),
        "machine": {"processor": platform.processor(), "cores": os.cpu_count()},
        "threads": args.threads,
        "device": args.device,
        "configurations": rows,
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    figures = {key: value for key, value in result.items() if isinstance(value, (int, float))}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
