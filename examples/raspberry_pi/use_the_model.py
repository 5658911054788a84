"""An application on the device: classify a camera frame with the model that the agent installed.

    python use_the_model.py /var/lib/trajsyn/device/device.toml frame.jpg
    python use_the_model.py /var/lib/trajsyn/device/device.toml frame.jpg --watch

With --watch it goes on: it classifies every new frame, and changes to a new release as soon as
the agent has switched to it. A frame must be written beside and then renamed, or half of one may
be read. Run it as the agent's user.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_sdk.agent.config import load_config
from edge_sdk.errors import EdgeError
from edge_sdk.inference import InstalledModel, active_version
from models import ModelSpec


def read_frame(path: Path, spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Return the picture as the model takes it: (1, C, H, W) float32 in [0, 1]."""
    with Image.open(path) as file:
        picture = file.convert("L" if spec.channels == 1 else "RGB")
        picture = picture.resize((spec.image_size, spec.image_size))
    pixels = np.asarray(picture, np.float32).reshape(spec.image_size, spec.image_size, -1) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def main() -> int:
    """Run until interrupted, or once without --watch."""
    parser = argparse.ArgumentParser(
        description="Classify a camera frame with the installed model."
    )
    parser.add_argument("config", type=Path, help="the agent's device.toml")
    parser.add_argument("frame", type=Path, help="picture file that the camera writes")
    parser.add_argument("--watch", action="store_true", help="go on with every new frame")
    options = parser.parse_args()
    try:
        config = load_config(options.config)
        model = InstalledModel.open(config)
        seen_ns = 0
        while True:
            written_ns = options.frame.stat().st_mtime_ns
            if model.slot.release.version != active_version(config):
                model = InstalledModel.open(config)
            if written_ns != seen_ns:
                seen_ns = written_ns
                logits = model.predict(read_frame(options.frame, model.spec))
                version = model.slot.release.version
                sys.stdout.write(f"class {logits.argmax()} (release {version})\n")
                sys.stdout.flush()
            if not options.watch:
                return 0
            time.sleep(0.2)
    except (EdgeError, OSError) as error:
        sys.stderr.write(f"use_the_model: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
