"""`edge-sdk export`: write the program file of a model."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

from edge_sdk.errors import ConfigError
from models import ModelSpec, SpecError
from models.spec import ARCHITECTURES


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Add the command and its options; importing this loads no torch."""
    parser = subparsers.add_parser(
        "export",
        help="make the program with which devices train or evaluate a model (needs torch)",
        description="Write the program file of a model. Its gradients are checked against float64 "
        "autograd first; a program that is off is refused.",
        epilog="exit codes: 2 wrong options, 3 a layer that is not supported, 4 wrong gradients, "
        "5 the native library is missing",
    )
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="convnet")
    parser.add_argument("--channels", type=int, required=True, help="of the input images")
    parser.add_argument("--image-size", type=int, required=True, help="side in pixels")
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--width", type=int, default=128, help="channels of the ConvNet")
    parser.add_argument("--depth", type=int, default=3, help="blocks of the ConvNet")
    for name, meaning in (("mean", "subtracted from"), ("std", "divides")):
        parser.add_argument(
            f"--{name}", type=float, nargs="+", required=True, help=f"{meaning} each channel"
        )
    parser.add_argument("--micro-batch", type=int, default=4, help="images a run (default 4)")
    parser.add_argument("--output", type=Path, required=True, help="the file, usually *.tsp")
    parser.add_argument("--evaluation", action="store_true", help="logits only, no gradients")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Export, check and write; returns 0. Raises the errors of `training_program`."""
    try:
        spec = ModelSpec(
            architecture=args.architecture,
            channels=args.channels,
            image_size=args.image_size,
            classes=args.classes,
            width=args.width,
            depth=args.depth,
            mean=tuple(args.mean),
            std=tuple(args.std),
        )
    except SpecError as error:
        raise ConfigError(str(error)) from error
    if not args.output.resolve().parent.is_dir():
        raise ConfigError(f"{args.output}: there is no such folder")
    try:
        with warnings.catch_warnings():
            # Notices of torch about its own code, and of kernels that nothing here uses.
            warnings.simplefilter("ignore", FutureWarning)
            for name in ("torch.utils._pytree", "torchao"):
                logging.getLogger(name).setLevel(logging.ERROR)
            from edge_sdk.export.programs import evaluation_program, training_program
    except ImportError as error:
        raise ConfigError(
            f"exporting needs torch and executorch ({error}); run `pip install 'trajsyn[server]'`"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if args.evaluation:
            file = evaluation_program(spec, batch=args.micro_batch)
        else:
            file = training_program(spec, micro_batch=args.micro_batch)
    file.save(args.output)
    gate = file.gate
    sys.stdout.write(
        f"{args.output}: {args.output.stat().st_size} bytes, largest error "
        f"{gate.max_relative_error:.1e} ({gate.worst}), tolerance {gate.tolerance:.0e}\n"
    )
    return 0
