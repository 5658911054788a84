"""What training costs in memory, in processes of their own: a test run has torch loaded."""

import json
import subprocess
import sys

import pytest

# 40 MB of it are Python, numpy and the libraries; a network of any size comes on top.
MAX_SMALL_TRAINING_MB = 60
MAX_GROWTH_MB = 0.5
MAX_TRANSIENT_BYTES = 3000  # a copy of one micro-batch would be 4,096

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

def on_step(step, steps, loss):
    if step in (3, steps):
        after[step] = (peak_mb(), tracemalloc.get_traced_memory()[0])
    if step == 4:
        tracemalloc.reset_peak()
    if step == steps - 1:
        after["transient"] = tracemalloc.get_traced_memory()[1]

if sys.argv[2] == "traced":
    tracemalloc.start()
train(file, start, data, epochs=1, batch_size=4, learning_rate=0.01, momentum=0.9, seed=0,
      threads=1, on_step=on_step)
first, last = after[3], after[60]
print(json.dumps({"peak_mb": last[0], "growth_mb": last[0] - first[0],
                  "transient_bytes": after["transient"] - first[1]}))
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
