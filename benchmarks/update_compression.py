"""Accuracy against uploaded bytes: full federated runs with every encoding of updates.

Devices train with the program that real devices run, updates are encoded, decoded and averaged
by the code that agents and servers run, all in one process without a broker. Every encoding runs
with error feedback and, as a control, without. For a seed, all runs share the devices' images, the
first weights and the order of batches. "fp32, other order" has other batches: its distance from
fp32 is what chance alone does.

A run that is in the `--json` file already is not repeated, so the program may be ended at any time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import idx_files
import numpy as np
import numpy.typing as npt
from compression_results import LAST, OTHER_ORDER, REFERENCE, draw, print_table, table

from edge_sdk.protocol.updates import decode_update, encode_update
from edge_sdk.runtime import ProgramFile
from edge_sdk.training import Dataset, accuracy, make_partition, train
from models import ModelSpec
from server_toolkit.rounds.fedavg import federated_average

MEAN, STD = 0.2860, 0.3530  # of Fashion-MNIST's training images
SETTINGS = (
    "width", "devices", "partition", "alpha", "images", "test_images", "rounds", "epochs",
    "batch_size", "learning_rate", "momentum",
)  # fmt: skip

Flat = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Arm:
    """An encoding, with error feedback or without."""

    encoding: str
    feedback: bool
    shuffle: int = 0

    @property
    def name(self) -> str:
        """What the table and the figure call it."""
        if self.encoding == "fp32":
            return OTHER_ORDER if self.shuffle else REFERENCE
        return self.encoding + ("" if self.feedback else ", no feedback")


@dataclass(frozen=True)
class World:
    """What all runs of one seed share."""

    training: ProgramFile
    evaluation: ProgramFile
    devices: list[Dataset]
    test: Dataset
    start: Flat


def arms(encodings: list[str]) -> list[Arm]:
    """Return the reference, chance, and every encoding with and without error feedback."""
    found = [Arm("fp32", feedback=True), Arm("fp32", feedback=True, shuffle=1)]
    return found + [Arm(e, feedback) for e in encodings for feedback in (True, False)]


def judged_rounds(rounds: int) -> list[int]:
    """Return the rounds after which the weights are tested: the first, some, and the last ones."""
    return [n for n in range(1, rounds + 1) if n <= 4 or n % 4 == 0 or n > rounds - LAST]


def federated_run(world: World, arm: Arm, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds; return accuracy at `judged_rounds` and what all devices had sent by then.

    Bytes are those of the updates; messages and the chunks' headers add under 0.1 %. What they are
    compared with is the raw float32 tensor: four bytes a parameter.
    """
    layout, weights = world.training.layout, world.start
    residuals: list[Flat | None] = [None] * len(world.devices)
    accuracies, uploaded, sizes = [], [], []
    judged = judged_rounds(args.rounds)
    for number in range(args.rounds):
        updates = []
        for i, dataset in enumerate(world.devices):
            result = train(
                world.training,
                weights,
                dataset,
                epochs=args.epochs,
                batch_size=args.batch_size,
                learning_rate=args.learning_rate,
                momentum=args.momentum,
                weight_decay=0.0,
                proximal_mu=0.0,
                seed=seed + 1000 * (arm.shuffle + 2 * (number * len(world.devices) + i)),
                threads=1,
            )
            encoded = encode_update(
                result.weights - weights, layout, arm.encoding, residual=residuals[i]
            )
            if arm.feedback:
                residuals[i] = encoded.residual
            sizes.append(len(encoded.data))
            updates.append((result.samples, decode_update(encoded.data, layout, arm.encoding)))
        weights = federated_average(weights, updates)
        if number + 1 in judged:
            accuracies.append(accuracy(world.evaluation, weights, world.test, threads=1))
            uploaded.append(sum(sizes))
    return {
        "arm": arm.name,
        "seed": seed,
        "accuracy": accuracies,
        "uploaded_bytes": uploaded,
        "bytes_of_fp32": float(np.mean(sizes)) / (4 * layout.size),
        "largest_update_of_fp32": max(sizes) / (4 * layout.size),
    }


class Worlds:
    """Makes the programs once, and for each seed the devices' images and first weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        from edge_sdk.export import evaluation_program, training_program

        self._args = args
        self._spec = ModelSpec(
            channels=1, image_size=32, classes=10, width=args.width, mean=(MEAN,), std=(STD,)
        )
        self._images = idx_files.load(args.data, "train").fit_to(self._spec)
        test = idx_files.load(args.data, "test").fit_to(self._spec)
        self._test = test.subset(np.arange(min(args.test_images, len(test))))
        self._training = training_program(self._spec)
        self._evaluation = evaluation_program(self._spec, batch=16)

    def world(self, seed: int) -> World:
        """Return the same world for the same seed."""
        from models.networks import build_model, flat_parameters

        rng = np.random.default_rng(seed)
        shares = make_partition(
            self._images.labels,
            [f"device-{i}" for i in range(self._args.devices)],
            kind=self._args.partition,
            seed=seed,
            alpha=self._args.alpha,
            indices=rng.permutation(len(self._images))[: self._args.images],
        )
        devices = [self._images.subset(indices) for indices in shares.values()]
        start = flat_parameters(build_model(self._spec, seed=seed))
        return World(self._training, self._evaluation, devices, self._test, start)


def main() -> None:
    """Run what is missing, print the table, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of the four IDX files")
    parser.add_argument("--json", type=Path, help="results; continued if it is there")
    parser.add_argument("--figure", type=Path, help="draw the curves (.png or .svg)")
    parser.add_argument(
        "--encodings", nargs="+", default=["int8", "int4", "topk-0.1", "topk-0.05", "topk-0.01"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--partition", choices=("dirichlet", "iid"), default="dirichlet")
    parser.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet draw")
    parser.add_argument("--images", type=int, default=3000, help="of all devices together")
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9)
    args = parser.parse_args()

    settings = {name: getattr(args, name) for name in SETTINGS}
    result: dict[str, Any] = {"settings": settings, "runs": []}
    if args.json and args.json.exists():
        result = json.loads(args.json.read_text(encoding="utf-8"))
        if result["settings"] != settings:
            raise SystemExit(f"{args.json} was made with {result['settings']}; name another file")
    print(", ".join(f"{k} {v}" for k, v in settings.items()), flush=True)
    there = {(r["seed"], r["arm"]) for r in result["runs"]}
    missing = [
        (seed, arm)
        for seed in range(args.seeds)
        for arm in arms(args.encodings)
        if (seed, arm.name) not in there
    ]
    shared = Worlds(args) if missing else None
    began = time.monotonic()
    for done, (seed, arm) in enumerate(missing, start=1):
        assert shared is not None
        run = federated_run(shared.world(seed), arm, seed, args)
        result["runs"].append(run)
        if args.json:
            args.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
        left_s = (time.monotonic() - began) / done * (len(missing) - done)
        print(
            f"{done}/{len(missing)} seed {seed} {arm.name:24} accuracy {run['accuracy'][-1]:.4f} "
            f"bytes {run['bytes_of_fp32']:.4f} of fp32, {left_s / 60:.0f} min left",
            flush=True,
        )
    result["table"] = table(result["runs"])
    print_table(result["table"])
    if args.json:
        args.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
    if args.figure:
        draw(result["runs"], args.figure)


if __name__ == "__main__":
    main()
