"""Federated runs in one process: the code that devices and servers run, without a broker."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.runtime import ProgramFile
from edge_sdk.training import Dataset, make_partition
from models import ModelSpec
from server_toolkit.datasets import load_dataset
from server_toolkit.simulate import Federation, FederationSettings

MEAN, STD = 0.2860, 0.3530  # of Fashion-MNIST's training images
SETTINGS = (
    "devices", "alpha", "images", "test_images", "rounds", "epochs", "batch_size",
    "learning_rate", "momentum",
)  # fmt: skip
PARTITIONS = ("dirichlet", "iid")

Flat = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Fleet:
    """What all runs of one seed share: every device's images, and the first weights."""

    devices: list[Dataset]
    start: Flat


@dataclass(frozen=True)
class Round:
    """The weights that a round gave, and the bytes of each device's update."""

    weights: Flat
    sizes: list[int]


def add_options(parser: argparse.ArgumentParser, **defaults: object) -> None:
    """Add `SETTINGS` and `--data` to a command line; `defaults` replaces some of theirs."""
    parser.add_argument("--data", type=Path, required=True, help="directory of the four IDX files")
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet draw")
    parser.add_argument("--images", type=int, default=3000, help="of all devices together")
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.set_defaults(**defaults)


def spec_of(width: int, depth: int = 3) -> ModelSpec:
    """Return a ConvNet for Fashion-MNIST's images with a border."""
    return ModelSpec(
        channels=1, image_size=32, classes=10, width=width, depth=depth, mean=(MEAN,), std=(STD,)
    )


def load_images(directory: Path, spec: ModelSpec, test_images: int) -> tuple[Dataset, Dataset]:
    """Return all training images and the first `test_images` of the others."""
    data = load_dataset("fashion_mnist", directory)
    test = data.test.fit_to(spec)
    return data.train.fit_to(spec), test.subset(np.arange(min(test_images, len(test))))


def make_fleet(
    spec: ModelSpec, images: Dataset, seed: int, args: argparse.Namespace, partition: str
) -> Fleet:
    """Return the same fleet for the same seed."""
    from models.networks import build_model, flat_parameters

    rng = np.random.default_rng(seed)
    shares = make_partition(
        images.labels,
        [f"device-{i}" for i in range(args.devices)],
        kind=partition,
        seed=seed,
        alpha=args.alpha,
        indices=rng.permutation(len(images))[: args.images],
    )
    devices = [images.subset(indices) for indices in shares.values()]
    return Fleet(devices, flat_parameters(build_model(spec, seed=seed)))


def run_rounds(
    program: ProgramFile,
    fleet: Fleet,
    seed: int,
    args: argparse.Namespace,
    *,
    encoding: str = "int8",
    feedback: bool = True,
    order: int = 0,
) -> Iterator[Round]:
    """Yield every round of FedAvg over all devices; updates travel in `encoding`.

    Without `feedback` what an update leaves out is lost. `order` 1 has other batches than 0.
    """
    settings = FederationSettings(
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        momentum=args.momentum,
        seed=seed,
        encoding=encoding,
        run=f"order-{order}",
        engine="native",
        micro_batch=program.micro_batch,
    )
    federation = Federation(program.spec, fleet.devices, settings, program=program)
    weights = fleet.start
    for number in range(args.rounds):
        result = federation.run_round(weights, number)
        weights = result.weights
        if not feedback:
            federation.restore({})
        yield Round(weights, [len(client.data) for client in result.clients])
