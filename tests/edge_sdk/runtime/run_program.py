"""Train some steps or classify some images, and print what came out and what was loaded, as JSON.

Run as `run_program.py PROGRAM [STEPS]` by Pythons that have trajsyn's wheel but none of the tests'
packages; the same seed gives the same images and weights on every machine.
"""

import importlib
import json
import math
import platform
import sys

import numpy as np

import edge_sdk
from edge_sdk.runtime import ProgramFile, instruction_sets, int8_instruction_sets
from edge_sdk.runtime.classifier import Classifier
from edge_sdk.training import Dataset, train

BATCH = 16


def start_weights(layout):
    """He's initialisation; norms at one, biases at zero."""
    rng = np.random.Generator(np.random.PCG64(8))
    arrays = {}
    for parameter in layout.parameters:
        shape = parameter.shape
        if len(shape) > 1:
            arrays[parameter.name] = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        else:
            arrays[parameter.name] = np.full(shape, parameter.name.endswith("weight"))
    return layout.join({name: a.astype(np.float32) for name, a in arrays.items()})


def labelled_images(spec):
    """A batch of noise that is brighter for a higher label."""
    rng = np.random.Generator(np.random.PCG64(7))
    labels = rng.integers(spec.classes, size=BATCH)
    shape = (BATCH, spec.channels, spec.image_size, spec.image_size)
    images = rng.random(shape, dtype=np.float32) * np.float32(0.5)
    images += (labels / (2 * spec.classes)).astype(np.float32)[:, None, None, None]
    return images, labels


def losses(file, steps):
    """The loss before each of `steps` steps on one batch."""
    images, labels = labelled_images(file.spec)
    found = []
    train(
        file,
        start_weights(file.layout),
        Dataset(images, labels, file.spec.classes),
        epochs=steps,
        batch_size=BATCH,
        learning_rate=0.05,
        momentum=0.9,
        seed=1,
        threads=2,
        on_step=lambda step, steps, loss: found.append(loss),
    )
    return found


def logits(file):
    images, _ = labelled_images(file.spec)
    with Classifier(file, threads=2) as classifier:
        return classifier.predict(images).ravel().tolist()


def main():
    file = ProgramFile.load(sys.argv[1])
    values = losses(file, int(sys.argv[2])) if file.kind == "training" else logits(file)
    importlib.import_module("edge_sdk.agent.agent")
    result = {
        "values": values,
        "machine": platform.machine(),
        "instruction_sets": instruction_sets(),
        "int8_instruction_sets": int8_instruction_sets(),
        "package": edge_sdk.__file__,
        "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
