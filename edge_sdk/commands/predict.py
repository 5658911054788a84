"""`edge-sdk predict`: run the installed model on images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "classify images with the installed model"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser("predict", help=HELP, description=HELP)
    parser.add_argument("images", type=Path, help=".npz with `images`, or one PNG or JPEG file")
    parser.add_argument("--config", type=Path, default=Path("device.toml"), metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the class of every image and which model said so."""
    from edge_sdk.agent.config import load_config
    from edge_sdk.inference import InstalledModel
    from edge_sdk.training.dataset import load_images

    model = InstalledModel.open(load_config(options.config))
    logits = model.predict(load_images(options.images, model.spec))
    release = model.slot.release
    classes = [int(c) for c in logits.argmax(axis=1)]
    if options.json:
        answer = {"release": release.name, "version": release.version, "classes": classes}
        print(json.dumps(answer | {"logits": logits.tolist()}))
    else:
        print(f"{release.name} version {release.version}, {model.slot.precision}")
        print(" ".join(map(str, classes)))
    return 0
