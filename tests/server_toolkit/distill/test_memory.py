"""Memory is predicted within a quarter of what is measured, and refused before it is taken."""

import json
import statistics
import subprocess
import sys

import pytest
import torch

from models import ModelSpec
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.memory import PeakOfStorages, predict_bytes, refuse_if_too_large
from server_toolkit.errors import DistillationError

PROCESSES = 5  # what malloc keeps differs by half from one process to the next
SPEC = dict(channels=3, image_size=32, classes=10, width=32, mean=[0.5] * 3, std=[0.2] * 3)

MEASURE = """
import json, sys
from pathlib import Path
import numpy as np, torch
from models import ModelSpec
from models.networks import build_model, flat_parameters
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.engine import distill
from server_toolkit.distill.memory import predict_bytes
from server_toolkit.distill.segments import Trajectories

torch.set_num_threads(1)
spec = ModelSpec(**json.loads(sys.argv[1]))
config = DistillConfig(iterations=1, **json.loads(sys.argv[2]))
weights = flat_parameters(build_model(spec, seed=0))
trajectories = Trajectories({0: weights, 1: weights + np.float32(0.01)})
predicted = predict_bytes(config, spec)

def status(name):  # ru_maxrss would begin with that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

before = status("VmRSS")
distill(trajectories, spec, config=config)
print(json.dumps([predicted, status("VmHWM") - before]))
"""


@pytest.mark.parametrize(
    "settings",
    [
        # Large, since one program's peaks differ by tens of megabytes from run to run.
        dict(images_per_class=200, batch_size=100, student_steps=3),
        pytest.param(
            dict(images_per_class=300, parameterisation="fourier", segments_per_iteration=2),
            marks=pytest.mark.slow,
        ),
        pytest.param(dict(batch_size=100, student_steps=30), marks=pytest.mark.slow),
    ],
)
def test_prediction_is_within_a_quarter_of_the_measured_peak(settings):
    command = [sys.executable, "-c", MEASURE, json.dumps(SPEC), json.dumps(settings)]
    found = []
    for _ in range(PROCESSES):
        output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        predicted, measured = json.loads(output)
        found.append(measured)
    assert predicted == pytest.approx(statistics.median(found), rel=0.25)


def test_peak_counts_what_lives_at_once():
    with torch.device("meta"), PeakOfStorages() as peak:
        first = torch.empty(1000)
        view = first.view(10, 100)  # no storage of its own
        second = view + 1
        del first, view
        third = second * 2
        assert third.sum().item() == 0
    assert peak.peak_bytes == 2 * 4000 + 4  # and the sum
    assert third.shape == second.shape


def test_another_student_step_costs_one_weight_vector():
    spec = ModelSpec(**SPEC)
    few, many = (predict_bytes(DistillConfig(student_steps=k), spec) for k in (10, 50))
    size = sum(p.numel() for p in _parameters(spec))
    assert many - few == 40 * 4 * size


def _parameters(spec):
    from models.networks import build_model

    return build_model(spec).parameters()


def test_too_large_is_refused_with_both_numbers():
    with pytest.raises(DistillationError, match=r"needs about 1000000\.0 GB .* free; buy some"):
        refuse_if_too_large("it", 10**15, "cpu", advice="buy some")
    refuse_if_too_large("it", 1, "cpu", advice="")
