"""What training costs in memory, in processes of their own: a test run has torch loaded."""

import json
import subprocess
import sys

import pytest

# 40 MB of it are Python, numpy and the libraries; a network of any size comes on top.
MAX_SMALL_TRAINING_MB = 60
MAX_GROWTH_MB = 0.5
# A copy of one micro-batch would be 4,096. The median over the steps: what a step makes, every
# step makes; what the interpreter makes now and then is not the step's.
MAX_TRANSIENT_BYTES = 3000

TRAIN = """
import json, sys, tracemalloc
import numpy as np
from edge_sdk.runtime import ProgramFile
from edge_sdk.training import Dataset, train

def peak_mb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024

file = ProgramFile.load(sys.argv[1])
rng = np.random.default_rng(0)
shape = (4 * 60, file.spec.channels, file.spec.image_size, file.spec.image_size)
pixels = rng.integers(256, size=shape, dtype=np.uint8)
data = Dataset(pixels, rng.integers(10, size=len(pixels)), 10)
start = rng.normal(0, 0.05, file.layout.size).astype(np.float32)
after = {}
transient = []

def on_step(step, steps, loss):
    if step in (3, steps):
        after[step] = peak_mb()
    if step > 3:
        now, peak = tracemalloc.get_traced_memory()
        transient.append(peak - now)
    tracemalloc.reset_peak()

if sys.argv[2] == "traced":
    tracemalloc.start()
train(file, start, data, epochs=1, batch_size=4, learning_rate=0.01, momentum=0.9, seed=0,
      threads=1, on_step=on_step)
print(json.dumps({"peak_mb": after[60], "growth_mb": after[60] - after[3],
                  "transient_bytes": sorted(transient)[len(transient) // 2]}))
"""


@pytest.fixture
def trained(tmp_path, small_training_program):
    """A function that trains 60 steps in a fresh process and says what that cost."""
    path = tmp_path / "program.tsp"
    small_training_program.save(path)

    def run(mode):
        command = [sys.executable, "-c", TRAIN, str(path), mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


def test_training_fits_a_small_device_and_does_not_grow(trained):
    found = trained("plain")
    assert found["peak_mb"] < MAX_SMALL_TRAINING_MB
    assert found["growth_mb"] < MAX_GROWTH_MB


def test_a_step_makes_no_arrays(trained):
    found = trained("traced")
    assert found["transient_bytes"] < MAX_TRANSIENT_BYTES
