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

import numpy as np
from compression_results import LAST, OTHER_ORDER, REFERENCE, draw, print_table, table
from federated import (
    PARTITIONS,
    SETTINGS,
    add_options,
    load_images,
    make_fleet,
    run_rounds,
    spec_of,
)

from edge_sdk.runtime import ProgramFile
from edge_sdk.training import Dataset, accuracy


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
class Shared:
    """What all runs share: the programs, all training images, and test images."""

    training: ProgramFile
    evaluation: ProgramFile
    images: Dataset
    test: Dataset


def arms(encodings: list[str], *, controls: bool) -> list[Arm]:
    """Return the reference, chance, and every encoding; as `controls` without feedback too."""
    found = [Arm("fp32", feedback=True), Arm("fp32", feedback=True, shuffle=1)]
    feedback = (True, False) if controls else (True,)
    return found + [Arm(e, f) for e in encodings for f in feedback]


def judged_rounds(rounds: int) -> list[int]:
    """Return the rounds after which the weights are tested: the first, some, and the last ones."""
    return [n for n in range(1, rounds + 1) if n <= 4 or n % 4 == 0 or n > rounds - LAST]


def federated_run(shared: Shared, arm: Arm, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds; return accuracy at `judged_rounds` and what all devices had sent by then.

    Bytes are those of the updates; messages and the chunks' headers add under 0.1 %. What they are
    compared with is the raw float32 tensor: four bytes a parameter.
    """
    program = shared.training
    fleet = make_fleet(program.spec, shared.images, seed, args, args.partition)
    accuracies, uploaded, sizes = [], [], []
    judged = judged_rounds(args.rounds)
    rounds = run_rounds(
        program, fleet, seed, args, encoding=arm.encoding, feedback=arm.feedback, order=arm.shuffle
    )
    for number, found in enumerate(rounds, start=1):
        sizes += found.sizes
        if number in judged:
            accuracies.append(accuracy(shared.evaluation, found.weights, shared.test, threads=1))
            uploaded.append(sum(sizes))
    size = 4 * program.layout.size
    return {
        "arm": arm.name,
        "seed": seed,
        "accuracy": accuracies,
        "uploaded_bytes": uploaded,
        "bytes_of_fp32": float(np.mean(sizes)) / size,
        "largest_update_of_fp32": max(sizes) / size,
    }


def prepare(args: argparse.Namespace) -> Shared:
    """Export the programs and read the images."""
    from edge_sdk.export import evaluation_program, training_program

    spec = spec_of(args.width)
    images, test = load_images(args.data, spec, args.test_images)
    return Shared(training_program(spec), evaluation_program(spec, batch=16), images, test)


def main() -> None:
    """Run what is missing, print the table, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--partition", choices=PARTITIONS, default="dirichlet")
    parser.add_argument("--json", type=Path, help="results; continued if it is there")
    parser.add_argument("--figure", type=Path, help="draw the curves (.png or .svg)")
    parser.add_argument(
        "--encodings", nargs="+", default=["int8", "int4", "topk-0.1", "topk-0.05", "topk-0.01"]
    )
    parser.add_argument("--no-controls", action="store_true", help="feedback in every run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    args = parser.parse_args()

    settings = {name: getattr(args, name) for name in ("width", "partition", *SETTINGS)}
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
        for arm in arms(args.encodings, controls=not args.no_controls)
        if (seed, arm.name) not in there
    ]
    shared = prepare(args) if missing else None
    began = time.monotonic()
    for done, (seed, arm) in enumerate(missing, start=1):
        assert shared is not None
        run = federated_run(shared, arm, seed, args)
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
