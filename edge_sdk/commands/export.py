"""`edge-sdk export`: make a training or evaluation program (needs the `server` extra)."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk.errors import ConfigError

HELP = "export a network as a program that devices train or evaluate with"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser("export", help=HELP, description=HELP)
    parser.add_argument("--architecture", default="convnet", choices=("convnet", "alexnet"))
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=32, help="side in pixels (28 pads to 32)")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--mean", type=float, nargs="+", default=[0.5], help="one a channel")
    parser.add_argument("--std", type=float, nargs="+", default=[0.25], help="one a channel")
    parser.add_argument("--micro-batch", type=int, default=4, help="images a step (default 4)")
    parser.add_argument("--evaluation", action="store_true", help="logits instead of gradients")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export, check every gradient against float64, write the file."""
    from models import ModelSpec, SpecError

    try:
        spec = ModelSpec(
            architecture=options.architecture,
            channels=options.channels,
            image_size=options.image_size,
            classes=options.classes,
            width=options.width,
            depth=options.depth,
            mean=tuple(options.mean),
            std=tuple(options.std),
        )
    except SpecError as error:
        raise ConfigError(str(error)) from error
    try:
        from edge_sdk.export import evaluation_program, training_program
    except ImportError as error:
        raise ConfigError(
            f"exporting needs torch and executorch ({error}); install `trajsyn[server]`"
        ) from error
    if options.evaluation:
        program = evaluation_program(spec, batch=options.micro_batch)
    else:
        program = training_program(spec, micro_batch=options.micro_batch)
    program.save(options.output)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")
    return 0
