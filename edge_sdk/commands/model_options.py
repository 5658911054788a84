"""The options that describe a network, and the description that they give."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk.errors import ConfigError
from models import ModelSpec, SpecError
from models.description import read_description

NAMES = ("convnet", "alexnet")
NEEDED = ("channels", "image_size", "classes", "mean", "std")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add everything but the architecture."""
    parser.add_argument("--channels", type=int, help="of the input images")
    parser.add_argument("--image-size", type=int, help="side in pixels")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--width", type=int, default=128, help="channels of the ConvNet")
    parser.add_argument("--depth", type=int, default=3, help="blocks of the ConvNet")
    for name, meaning in (("mean", "subtracted from"), ("std", "divides")):
        parser.add_argument(f"--{name}", type=float, nargs="+", help=f"{meaning} each channel")


def spec_of(args: argparse.Namespace, *, architecture: str, file: Path | None) -> ModelSpec:
    """Return what a file or else the options describe; raises `ConfigError`."""
    given = [_option(name) for name in NEEDED if getattr(args, name) is not None]
    missing = [_option(name) for name in NEEDED if getattr(args, name) is None]
    if file is not None and given:
        raise ConfigError(f"{file} describes the whole network; leave out {', '.join(given)}")
    if file is None and missing:
        raise ConfigError(f"{', '.join(missing)} must be given, or a file that describes it all")
    try:
        if file is not None:
            return read_description(file)
        return ModelSpec(
            architecture=architecture,
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


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
