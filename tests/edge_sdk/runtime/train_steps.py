"""Train some steps and print their losses and what was loaded, as JSON.

Run as `train_steps.py PROGRAM STEPS` by Pythons that have trajsyn's wheel but none of the tests'
packages; the same seed gives the same images and weights on every machine.
"""

import importlib
import json
import math
import platform
import sys

import numpy as np

import edge_sdk
from edge_sdk.runtime import ProgramFile, instruction_sets
from edge_sdk.training import Dataset, train

BATCH = 16


def start_weights(layout, rng):
    arrays = {}
    for parameter in layout.parameters:
        shape = parameter.shape
        if len(shape) > 1:
            arrays[parameter.name] = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        else:
            arrays[parameter.name] = np.full(shape, parameter.name.endswith("weight"))
    return layout.join({name: a.astype(np.float32) for name, a in arrays.items()})


def main():
    file, steps = ProgramFile.load(sys.argv[1]), int(sys.argv[2])
    rng = np.random.Generator(np.random.PCG64(7))
    height, width, channels = file.image_shape
    labels = rng.integers(file.spec.classes, size=BATCH)
    images = rng.random((BATCH, channels, height, width), dtype=np.float32) * np.float32(0.5)
    images += (labels / (2 * file.spec.classes)).astype(np.float32)[:, None, None, None]
    losses = []
    train(
        file,
        start_weights(file.layout, rng),
        Dataset(images, labels, file.spec.classes),
        epochs=steps,  # the data set is one batch
        batch_size=BATCH,
        learning_rate=0.05,
        momentum=0.9,
        seed=1,
        threads=2,
        on_step=lambda step, steps, loss: losses.append(loss),
    )
    importlib.import_module("edge_sdk.agent.agent")
    result = {
        "losses": losses,
        "machine": platform.machine(),
        "glibc": platform.libc_ver()[1],
        "instruction_sets": instruction_sets(),
        "package": edge_sdk.__file__,
        "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
