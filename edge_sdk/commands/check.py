"""`edge-sdk export check`: what of a network devices can train, and what has to change."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.commands.model_options import NAMES, NEEDED, add_model_options, spec_of
from edge_sdk.commands.output_file import require_writable
from edge_sdk.commands.torch_notices import without_notices
from edge_sdk.errors import ConfigError
from models.description import to_toml

if TYPE_CHECKING:
    from torch import nn

    from edge_sdk.export.check_model import ModelCheck
    from edge_sdk.export.training_check import TrainingCheck

UNSUPPORTED, WRONG = 3, 4
MAX_WIDTH = 44  # of a layer's text in the table

EPILOG = """\
exit codes:
  0 every layer is supported and trains as in float64
  2 wrong options, or a file that holds no network
  3 a layer is not supported; what to put in its place is printed
  4 gradients are off
  5 the native library is missing
"""


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Add the command and its options; importing this loads no torch."""
    parser = subparsers.add_parser(
        "check",
        help="say layer by layer what devices can train, and compare training with float64",
        description="Say layer by layer whether devices can train a network; compare its gradients "
        "and 20 steps of training, in every instruction set of this machine, with float64; for "
        "what is not supported, propose a replacement and check that.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"{' or '.join(NAMES)}; a description (.toml or .json; a server.toml too); or "
        "FILE.py:FUNCTION, your own code, which is run: the function returns a torch module",
    )
    add_model_options(parser)
    parser.add_argument("--input", metavar="C,H,W", help="the images of FILE.py:FUNCTION's module")
    parser.add_argument("--micro-batch", type=int, default=4, help="images a run (default 4)")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of the 20 steps")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="the description (.toml), replacements made"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything found")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, print and write; returns the exit code."""
    if args.micro_batch < 1 or not args.learning_rate > 0:
        raise ConfigError("--micro-batch and --learning-rate must be above 0")
    require_writable(args.write, args.json)
    with without_notices("checking"):
        from edge_sdk.export.check_model import check_module, check_spec
    options = {"batch": args.micro_batch, "learning_rate": args.learning_rate}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ".py:" in args.model:
            if args.input is None or any(getattr(args, name) is not None for name in NEEDED):
                raise ConfigError("FILE.py:FUNCTION needs --input C,H,W, and nothing else of that")
            found = check_module(_module(args.model), _shape(args.input), **options)
        else:
            if args.model.endswith(".py"):
                raise ConfigError(f"{args.model}: which function of it? Give {args.model}:FUNCTION")
            if args.input is not None:
                raise ConfigError("--input belongs to FILE.py:FUNCTION")
            file = None if args.model in NAMES else Path(args.model)
            for name, value in (("mean", 0.5), ("std", 0.5)):
                if file is None and args.channels and getattr(args, name) is None:
                    setattr(args, name, [value] * args.channels)
            found = check_spec(spec_of(args, architecture=args.model, file=file), **options)
    sys.stdout.write(_text(found))
    if args.write is not None:
        if found.description is None:
            raise ConfigError(f"there is nothing to write: {found.no_description}")
        args.write.write_text(to_toml(found.description))
        sys.stdout.write(f"\n{args.write}: written\n")
    if args.json is not None:
        args.json.write_text(json.dumps(_json(found), indent=1) + "\n")
    if found.training is not None and found.training.failures:
        return WRONG
    return 0 if found.supported else UNSUPPORTED


def _module(text: str) -> nn.Module:
    """Run the developer's own file and return what its function gives."""
    from torch import nn

    name, _, function = text.rpartition(":")
    path = Path(name)
    spec = importlib.util.spec_from_file_location("checked_model", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path}: there is no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        made = make() if callable(make) else None
    except Exception as error:  # somebody else's code may raise anything
        raise ConfigError(f"{_place(error, path)}: {type(error).__name__}: {error}") from error
    if not callable(make):
        raise ConfigError(f"{path} has no function {function!r}")
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{text} returned {type(made).__name__}, not a torch module")
    return made


def _place(error: Exception, path: Path) -> str:
    """Return the last line of the developer's file that the error passed through."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _shape(text: str) -> tuple[int, ...]:
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--input is {text!r}; give three numbers, such as 3,32,32") from None
    if min(channels, height, width) < 1:
        raise ConfigError(f"--input is {text!r}; every number must be above 0")
    if height != width:
        raise ConfigError(f"--input is {text!r}; devices take square images")
    return channels, height, width


def _text(found: ModelCheck) -> str:
    rows = [("layer", "what it is", "block", "output", "parameters", "MFLOP")]
    without = "-" if found.supported else "supported"
    for layer in found.layers:
        rows.append(
            (
                layer.name,
                textwrap.shorten(layer.layer, MAX_WIDTH, placeholder=" ...)"),
                "NOT SUPPORTED" if layer.problem else layer.block or without,
                "x".join(str(side) for side in layer.output),
                str(layer.parameters),
                f"{layer.flop / 1e6:.2f}",
            )
        )
    parts = [_table(rows)]
    notes = [layer for layer in found.layers if layer.problem or layer.advice]
    if notes:
        parts.append(
            "".join(
                f"{layer.name}: {'; '.join(filter(None, (layer.problem, layer.advice)))}\n"
                for layer in notes
            )
        )
    if not found.supported and found.description is None:
        parts.append(f"no replacement of the whole: {found.no_description}\n")
    elif not found.supported and found.description is not None:
        parts.append("the chain with every replacement made:\n\n" + to_toml(found.description))
    if found.training is not None:
        whose = "the network" if found.supported else "the replacement"
        parts.append(f"training of {whose}:\n\n{_training(found.training)}")
    return "\n".join(parts)


def _training(check: TrainingCheck) -> str:
    from edge_sdk.export.training_check import DIVERGED

    heading = ["instruction set"]
    heading += [f"after {g.after_steps} steps" for g in check.sets[0].gradients]
    rows = [(*heading, "drift", "drift of float32")]
    for each in check.sets:
        errors = [f"{g.errors[g.worst]:.1e} ({g.worst})" for g in each.gradients]
        drift = (f"{each.drift:.1e}", f"{check.float32_drift:.1e}")
        rows.append((each.instruction_set, *errors, *drift))
    text = _table(rows)
    text += (
        "\nLargest relative error of loss, logits and gradients against float64 autograd at the\n"
        "same weights. Drift: how far the weights are from those of float64 training in the end,\n"
        "over the way that it went; beside it that of torch in float32.\n"
    )
    if not check.float32_drift <= DIVERGED:
        text += "Training diverged; for its end and the drift choose a lower --learning-rate.\n"
    return text + "".join(f"WRONG: {failure}\n" for failure in check.failures)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
    return "\n".join(lines) + "\n"


def _json(found: ModelCheck) -> dict[str, Any]:
    return {
        "supported": found.supported,
        "layers": [dataclasses.asdict(layer) for layer in found.layers],
        "description": found.description and found.description.to_dict(),
        "no_description": found.no_description,
        "training": found.training and dataclasses.asdict(found.training),
    }
