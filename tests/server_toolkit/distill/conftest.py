"""A tiny network and its trajectories, for the tests of the engine and what is around it."""

import numpy as np
import pytest
import torch

from models import ModelSpec
from models.networks import build_model, flat_parameters
from server_toolkit.distill.segments import Trajectories

SPEC = ModelSpec(channels=1, image_size=8, classes=3, width=4, depth=2, mean=(0.3,), std=(0.4,))


@pytest.fixture(scope="package")
def trajectories():
    """Three rounds of one device that learns to tell three bright places apart."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((60, 1, 8, 8), np.float32)) * 0.3
    labels = torch.arange(60) % 3
    for image, label in zip(images, labels, strict=True):
        image[0, :, 3 * label : 3 * label + 2] += 0.6
    model = build_model(SPEC, seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    path = {0: flat_parameters(model)}
    for t in range(3):
        for _ in range(10):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        path[t + 1] = flat_parameters(model)
    return Trajectories(path, {"a": {t: path[t + 1] for t in range(3)}})
