"""`edge-sdk export`: write the program file of a model."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.commands import check
from edge_sdk.commands.model_options import NAMES, add_model_options, spec_of
from edge_sdk.commands.torch_notices import without_notices
from edge_sdk.errors import ConfigError, ProtocolError
from edge_sdk.export import TRAINING_PRECISIONS
from models import ModelSpec, layout_of

if TYPE_CHECKING:
    from edge_sdk.training.dataset import Float32
    from models.layout import Flat


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Add the command and its options; importing this loads no torch."""
    parser = subparsers.add_parser(
        "export",
        help="make the program with which devices train or evaluate a model (needs torch)",
        description="Write the program file of a model. Its gradients are checked against float64 "
        "autograd first; a program that is off is refused.",
        epilog="exit codes: 2 wrong options, 3 a layer that is not supported, 4 wrong gradients or "
        "logits, 5 the native library is missing",
    )
    check.add_parser(parser.add_subparsers(title="instead", metavar="check MODEL"))
    parser.add_argument("--architecture", choices=NAMES, default="convnet")
    add_model_options(parser)
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="a description (.toml or .json) in place of the options above",
    )
    parser.add_argument("--micro-batch", type=int, default=4, help="images a run (default 4)")
    parser.add_argument("--output", type=Path, help="the file, usually *.tsp")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--evaluation", action="store_true", help="logits only, no gradients")
    kinds.add_argument(
        "--inference", action="store_true", help="logits only, with the weights inside"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="model.safetensors, for --inference"
    )
    parser.add_argument(
        "--precision",
        choices=TRAINING_PRECISIONS,
        default="fp32",
        help="of a training program, or of --inference (fp32 or int8)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="images that set the int8 ranges: .npz with images and labels, or a proxy set",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Export, check and write; returns 0. Raises the errors of `training_program`."""
    spec = spec_of(args, architecture=args.architecture, file=args.model)
    if args.output is None:
        raise ConfigError("--output must be given")
    if not args.inference and (args.weights is not None or args.calibration is not None):
        raise ConfigError("--weights and --calibration belong to --inference")
    if args.evaluation and args.precision != "fp32":
        raise ConfigError("--evaluation is in fp32; --inference takes --precision int8")
    if args.inference and args.weights is None:
        raise ConfigError("--inference needs --weights")
    if args.inference and args.precision == "simulated-int8":
        raise ConfigError("--precision simulated-int8 is for training; --inference takes int8")
    if args.inference and (args.precision == "int8") != (args.calibration is not None):
        raise ConfigError("--inference takes --calibration with --precision int8, and only then")
    if not args.output.resolve().parent.is_dir():
        raise ConfigError(f"{args.output}: there is no such folder")
    with without_notices("exporting"):
        from edge_sdk.export import evaluation_program, inference_program, training_program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if args.inference:
            file = inference_program(
                spec,
                _weights(args.weights, spec),
                batch=args.micro_batch,
                precision=args.precision,
                calibration=args.calibration and _calibration(args.calibration, spec),
            )
        elif args.evaluation:
            file = evaluation_program(spec, batch=args.micro_batch)
        else:
            options = TRAINING_PRECISIONS[args.precision]
            file = training_program(spec, micro_batch=args.micro_batch, **options)
    file.save(args.output)
    gate, seen = file.gate, file.inference
    agreement = (
        f", same class on {seen.agreement:.1%} of {seen.checked_images} images" if seen else ""
    )
    sys.stdout.write(
        f"{args.output}: {args.output.stat().st_size} bytes, largest error "
        f"{gate.max_relative_error:.1e} ({gate.worst}), tolerance {gate.tolerance:.0e}"
        f"{agreement}\n"
    )
    return 0


def _weights(path: Path, spec: ModelSpec) -> Flat:
    """Return the flat weights of a file that the server wrote."""
    from edge_sdk.protocol.updates import decode_weights

    try:
        return decode_weights(path.read_bytes(), layout_of(spec))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ProtocolError as error:
        raise ConfigError(f"{path} does not hold this model's weights: {error}") from error


def _calibration(path: Path, spec: ModelSpec) -> Float32:
    """Return the images of an npz file or of a proxy set."""
    from safetensors import SafetensorError, safe_open

    from edge_sdk.training.sources import load_npz

    if path.suffix != ".safetensors":
        return load_npz(path).fit_to(spec).images
    try:
        with safe_open(str(path), "numpy") as file:
            images: Float32 = file.get_tensor("images")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} holds no images: {error}") from error
    return images
