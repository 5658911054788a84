"""What int8 costs a federated model, trained with simulated int8 on the devices and without.

Full federated runs on Fashion-MNIST: every arm trains the same devices' images from the same first
weights in the same order, and sends int8 updates as devices do. Each final model is then made into
the int8 models that devices run (ONNX and XNNPACK), with ranges from random shapes, which a release
of the undefended model uses, and from real images, as a server set or a good proxy set has; all are
judged on the same test images.

A run that is in the `--json` file already is not repeated, so the program may be ended at any time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from federated import (
    PARTITIONS,
    SETTINGS,
    Flat,
    add_options,
    load_images,
    make_fleet,
    run_rounds,
    spec_of,
)
from quantized_results import DEPLOYED, draw, print_tables, table

from edge_sdk.errors import InferenceGateError
from edge_sdk.export import evaluation_program, inference_program, training_program
from edge_sdk.runtime import ProgramFile
from edge_sdk.training import Dataset, accuracy, evaluate
from models import ModelSpec
from models.layers import Convolution, InstanceNorm, Layer, MaxPool, ReLU
from server_toolkit.distill.initial_images import initial_images
from server_toolkit.release.bundle import export_pair
from server_toolkit.release.onnx_model import OnnxModel


@dataclass(frozen=True)
class Arm:
    """How devices train: what `training_program` is told, and which order of batches they take."""

    options: Mapping[str, bool] = field(default_factory=dict)
    order: int = 0


ARMS = {
    "fp32": Arm(),
    "fp32, other order": Arm(order=1),  # what chance alone does
    "simulated int8": Arm({"quantized": True}),
    "int8 arithmetic": Arm({"int8_arithmetic": True}),
}
CALIBRATION_IMAGES = 200
CURVE_IMAGES = 2000
QUICK = {"devices": 3, "images": 300, "test_images": 500, "rounds": 2, "seeds": 1}


def network_of(name: str) -> ModelSpec:
    """Return the ConvNet of "32" or, with another depth, of "32x4".

    "plain-16" has three convolutions without a norm, "deep-8" nine with one; and "alexnet".
    """
    if name == "alexnet":
        return dataclasses.replace(spec_of(1), architecture=name)
    kind, _, wide = name.rpartition("-")
    if not kind:
        wide, _, deep = name.partition("x")
        return spec_of(int(wide), int(deep or 3))
    width, layers = int(wide), list[Layer]()
    for channels in (width, 2 * width, 2 * width):
        convolution = Convolution(outputs=channels, kernel=3)
        block = {"plain": [convolution, ReLU()], "deep": 3 * [convolution, InstanceNorm(), ReLU()]}
        layers += [*block[kind], MaxPool(size=2)]
    return dataclasses.replace(spec_of(1), architecture="chain", layers=tuple(layers))


class Network:
    """A network's programs, made when they are first needed, and its images."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.spec = network_of(name)
        self.train, self.test = load_images(args.data, self.spec, args.test_images)
        self.evaluation = evaluation_program(self.spec, batch=16)
        self._programs: dict[str, ProgramFile] = {}
        shapes, _ = initial_images("structured", self.spec, images_per_class=20, seed=0)
        real = self.train.images[-CALIBRATION_IMAGES:]
        self.calibration = {"random shapes": shapes, "real images": real}

    def program(self, arm: str) -> ProgramFile:
        """Return the training program of an arm."""
        if arm not in self._programs:
            self._programs[arm] = training_program(self.spec, **ARMS[arm].options)
        return self._programs[arm]

    def deployed_accuracy(self, weights: Flat) -> dict[str, float | None]:
        """Return the accuracy of each int8 model; None where its gate refuses it."""
        found: dict[str, float | None] = {}
        for source, images in self.calibration.items():
            pair = export_pair(self.spec, weights, images)
            found[f"ONNX, {source}"] = onnx_accuracy(pair.int8, self.test)
            try:
                program = inference_program(
                    self.spec, weights, batch=16, precision="int8", calibration=images
                )
                found[f"XNNPACK, {source}"] = evaluate(program, self.test, threads=1)
            except InferenceGateError as error:
                print(f"  {error}")
                found[f"XNNPACK, {source}"] = None
        return {name: found[name] for name in DEPLOYED}


def onnx_accuracy(data: bytes, test: Dataset) -> float:
    """Return the part of examples whose largest logit is their label."""
    return float(np.mean(OnnxModel(data).logits(test.images).argmax(axis=1) == test.labels))


def federated_run(
    network: Network, partition: str, arm: str, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Run all rounds and judge the last weights, in fp32 and in int8."""
    fleet = make_fleet(network.spec, network.train, seed, args, partition)
    few = network.test.subset(np.arange(min(CURVE_IMAGES, len(network.test))))
    curve, weights = [], fleet.start
    program = network.program(arm)
    began = time.process_time()
    rounds = run_rounds(program, fleet, seed, args, order=ARMS[arm].order)
    for number, found in enumerate(rounds, start=1):
        weights = found.weights
        curve.append(accuracy(network.evaluation, weights, few, threads=1))
        if sys.stdout.isatty():
            print(
                f"\r  round {number}/{args.rounds}, accuracy {curve[-1]:.4f}\r", end="", flush=True
            )
    training_cpu_s = time.process_time() - began
    return {
        "curve": curve,
        "training_cpu_s": training_cpu_s,
        "accuracy": accuracy(network.evaluation, weights, network.test, threads=1),
        "int8_accuracy": network.deployed_accuracy(weights),
    }


def main() -> None:
    """Run what is missing, print the tables, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, images=10_000, test_images=10_000, rounds=20, batch_size=16)
    parser.add_argument("--partitions", nargs="+", choices=PARTITIONS, default=["dirichlet"])
    parser.add_argument("--json", type=Path, help="results; continued if it is there")
    parser.add_argument("--figure", type=Path, help="draw the results (.png or .svg)")
    parser.add_argument("--networks", nargs="+", default=["32", "8", "plain-16", "deep-8"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a minute, for trying it out")
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    warnings.simplefilter("ignore", FutureWarning)  # torch's own, about torch's own code

    settings = {name: getattr(args, name) for name in SETTINGS}
    result: dict[str, Any] = {"settings": settings, "runs": []}
    if args.json and args.json.exists():
        result = json.loads(args.json.read_text(encoding="utf-8"))
        if result["settings"] != settings:
            raise SystemExit(f"{args.json} was made with {result['settings']}; name another file")
    print(", ".join(f"{k} {v}" for k, v in settings.items()), flush=True)
    keys = ("network", "partition", "seed", "arm")
    there = [tuple(r[k] for k in keys) for r in result["runs"]]
    wanted = itertools.product(args.networks, args.partitions, range(args.seeds), args.arms)
    missing = [run for run in wanted if run not in there]
    networks: dict[str, Network] = {}
    began = time.monotonic()
    for done, run in enumerate(missing, start=1):
        name, partition, seed, arm = run
        if name not in networks:
            networks = {name: Network(name, args)}
        found = federated_run(networks[name], partition, arm, seed, args)
        result["runs"].append(dict(zip(keys, run, strict=True)) | found)
        if args.json:
            args.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
        left_min = (time.monotonic() - began) / done * (len(missing) - done) / 60
        int8 = ", ".join("-" if v is None else f"{v:.4f}" for v in found["int8_accuracy"].values())
        print(
            f"{done}/{len(missing)} network {name}, {partition}, seed {seed}, {arm}: accuracy "
            f"{found['accuracy']:.4f}, int8 {int8}; {left_min:.0f} min left",
            flush=True,
        )
    result["table"] = table(result["runs"])
    print_tables(result["table"])
    if args.json:
        args.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
    if args.figure:
        draw(result["runs"], args.figure)


if __name__ == "__main__":
    main()
