"""`edge-sdk predict`: run the installed model, or an inference program, on images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edge_sdk.training.dataset import Dataset
    from models import ModelSpec

    Model = tuple[dict[str, Any], ModelSpec, Callable[[Any], Any]]

HELP = "classify images with the installed model or a program"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser("predict", help=HELP, description=HELP)
    parser.add_argument("images", type=Path, help=".npz with images and labels, or a PNG or JPEG")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config", type=Path, default=Path("device.toml"), metavar="FILE")
    model.add_argument(
        "--program", type=Path, metavar="FILE", help="made by `edge-sdk export --inference`"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the class of every image and which model said so."""
    name, spec, predict = _program(options.program) if options.program else _installed(options)
    data = _load(options.images, spec)
    logits = predict(data.images)
    classes = [int(c) for c in logits.argmax(axis=1)]
    right = None
    if options.images.suffix == ".npz":
        right = float((logits.argmax(axis=1) == data.labels).mean())
    if options.json:
        answer = name | {"classes": classes, "accuracy": right, "logits": logits.tolist()}
        print(json.dumps(answer))
    else:
        print(", ".join(f"{key} {value}" for key, value in name.items()))
        print(" ".join(map(str, classes)))
        if right is not None:
            print(f"{right:.1%} as labelled")
    return 0


def _installed(options: argparse.Namespace) -> Model:
    from edge_sdk.agent.config import load_config
    from edge_sdk.inference import InstalledModel

    model = InstalledModel.open(load_config(options.config))
    release = model.slot.release
    name = {"release": release.name, "version": release.version, "precision": model.slot.precision}
    return name, model.spec, model.predict


def _program(path: Path) -> Model:
    from edge_sdk.runtime import ProgramFile
    from edge_sdk.runtime.classifier import Classifier

    file = ProgramFile.load(path)
    model = Classifier(file)
    assert file.inference is not None
    return {"program": str(path), "precision": file.inference.precision}, file.spec, model.predict


def _load(path: Path, spec: ModelSpec) -> Dataset:
    """Return the images of a file; a picture gets the label 0, which nobody looks at."""
    import numpy as np
    from PIL import Image

    from edge_sdk.errors import ConfigError
    from edge_sdk.training.dataset import Dataset
    from edge_sdk.training.sources import load_npz

    if path.suffix == ".npz":
        return load_npz(path).fit_to(spec)
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if spec.channels == 1 else "RGB")
            picture = picture.resize((spec.image_size, spec.image_size))
    except OSError as error:
        raise ConfigError(f"{path}: no readable picture: {error}") from error
    pixels = np.asarray(picture, np.float32).reshape(spec.image_size, spec.image_size, -1) / 255
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
    return Dataset(images, np.zeros(1, np.int64), spec.classes)
