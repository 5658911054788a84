"""Hardening objectives at equal cost, on one federated model and its server set.

Every arm may send the same number of images through the network: each counts once forward and once
backward, in the attack, in training and to the teacher. Cheap objectives so take more steps. All
start from the same federated model and train on the same real images with its labels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from edge_sdk.training import Dataset, make_partition
from models import ModelSpec
from models.fast_pooling import use_fast_pooling
from models.layout import Flat
from models.networks import Network, build_model, flat_parameters, load_flat
from server_toolkit.datasets import load_dataset
from server_toolkit.robust import native_engine
from server_toolkit.robust.attacks import pgd
from server_toolkit.robust.harden import HardenConfig, harden
from server_toolkit.simulate import Federation, FederationSettings

ARMS: dict[str, dict[str, Any]] = {
    "kl": {},
    "kl + AWP": {"awp_gamma": 0.005},
    "pgd_at": {"objective": "pgd_at"},
    "trades, β 6": {"objective": "trades"},
    "trades, β 1": {"objective": "trades", "beta": 1.0},
    "mart, β 6": {"objective": "mart"},
    "fast": {"objective": "fast"},
    "free, m 4": {"objective": "free"},
}
PGD_STEPS = 20


def main() -> None:
    """Run all arms for every seed; write what is known so far, and at the end a table."""
    args = parse()
    torch.set_num_threads(args.threads)
    settings = {key: value for key, value in vars(args).items() if key not in ("data", "json")}
    rows: list[dict[str, Any]] = []
    for row in measure(args):
        rows.append(row)
        print(row, flush=True)
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for every seed and arm, the undefended model first."""
    for seed in args.seeds:
        spec, start, own, test = prepare(args, seed)
        yield {"arm": "fedavg", "seed": seed, **judge(spec, start, test, args, seed)}
        base = HardenConfig(
            epsilon=args.epsilon, flips=args.flips, shift_pixels=args.shift_pixels, seed=seed
        )
        for name, changes in ARMS.items():
            config = dataclasses.replace(base, **changes)
            steps = max(1, round(args.passes / passes_a_step(spec, start, own, config)))
            config = dataclasses.replace(config, steps=steps)
            native_engine.hardening_programs(
                spec, config, "cpu"
            )  # exported before the clock starts
            began_s = time.process_time()
            hardened = harden(spec, start, own.images, own.labels, config=config).weights
            yield {
                "arm": name,
                "seed": seed,
                "steps": steps,
                "cpu_s": time.process_time() - began_s,
                **judge(spec, hardened, test, args, seed),
            }


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="directory of the data set's files"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the results go")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--flips", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--shift-pixels", type=int, default=2)
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--passes", type=int, default=190_000, help="images forward or backward")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--images", type=int, default=10_000, help="of all devices together")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--server-images", type=int, default=10, help="real ones of a class")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def prepare(args: argparse.Namespace, seed: int) -> tuple[ModelSpec, Flat, Dataset, Dataset]:
    """Return the network, its federated weights, the server's own images and the test images."""
    data = load_dataset(args.dataset, args.data)
    order = np.random.default_rng(seed).permutation(len(data.train))
    of_devices, rest = order[: args.images], order[args.images :]
    own = [
        rest[data.train.labels[rest] == c][: args.server_images] for c in range(data.train.classes)
    ]
    pixels = data.train.subset(of_devices).images
    spec = ModelSpec(
        channels=pixels.shape[1],
        image_size=pixels.shape[2],
        classes=data.train.classes,
        width=args.width,
        mean=tuple(float(m) for m in pixels.mean(axis=(0, 2, 3)).round(4)),
        std=tuple(float(s) for s in pixels.std(axis=(0, 2, 3)).round(4)),
    )
    names = [f"device-{i}" for i in range(args.devices)]
    shares = make_partition(data.train.labels, names, kind="iid", seed=seed, indices=of_devices)
    settings = FederationSettings(epochs=args.epochs, batch_size=50, seed=seed)
    federation = Federation(spec, [data.train.subset(s) for s in shares.values()], settings)
    weights = flat_parameters(build_model(spec, seed=seed))
    for number in range(args.rounds):
        weights = federation.run_round(weights, number).weights
        print(f"seed {seed}: round {number + 1} of {args.rounds}", flush=True)
    test = data.test.subset(np.arange(min(args.test_images, len(data.test))))
    return spec, weights, data.train.subset(np.concatenate(own)), test


def passes_a_step(spec: ModelSpec, start: Flat, own: Dataset, config: HardenConfig) -> float:
    """Return how many images a step sends forward and backward, counted over a few steps."""
    steps = config.free_replays  # as many as share one batch, and its labels
    few = dataclasses.replace(config, steps=steps)
    with counted_images() as count:
        harden(spec, start, own.images, own.labels, config=few)
    return count[0] / steps


@contextmanager
def counted_images() -> Iterator[list[int]]:
    """Count the images that any network takes forward or backward meanwhile, in a list of one."""
    count = [0]

    def forward(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, Network):
            count[0] += len(output)
            if output.requires_grad:
                output.register_hook(backward)

    def backward(gradient: Tensor) -> None:
        count[0] += len(gradient)

    handle = register_module_forward_hook(forward)
    # The devices' runtime has no hooks: these few steps are torch's.
    worth, native_engine.WORTH_AN_EXPORT = native_engine.WORTH_AN_EXPORT, math.inf
    try:
        yield count
    finally:
        handle.remove()
        native_engine.WORTH_AN_EXPORT = worth


def judge(
    spec: ModelSpec, weights: Flat, test: Dataset, args: argparse.Namespace, seed: int
) -> dict[str, float]:
    """Return clean accuracy and accuracy under PGD, in percent."""
    model = build_model(spec, seed=0)
    load_flat(model, weights)
    use_fast_pooling(model)
    generator = torch.Generator().manual_seed(seed)
    clean = robust = 0
    for first in range(0, len(test), 100):
        part = slice(first, first + 100)
        x, y = torch.from_numpy(test.images[part]), torch.from_numpy(test.labels[part])
        attacked = pgd(model, x, y, epsilon=args.epsilon, steps=PGD_STEPS, generator=generator)
        with torch.no_grad():
            clean += int((model(x).argmax(1) == y).sum())
            robust += int((model(attacked).argmax(1) == y).sum())
    return {"clean": 100 * clean / len(test), "pgd_20": 100 * robust / len(test)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over the seeds as Markdown."""
    lines = ["| objective | steps | CPU s | clean | PGD-20 |", "|---|---|---|---|---|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        clean, robust = (np.mean([row[key] for row in own]) for key in ("clean", "pgd_20"))
        steps = cost = "-"
        if "steps" in own[0]:
            steps, cost = str(own[0]["steps"]), f"{np.mean([row['cpu_s'] for row in own]):.0f}"
        lines.append(f"| {arm} | {steps} | {cost} | {clean:.1f} | {robust:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
