"""A small network that tells digits apart, trained once for the whole folder."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from models import ModelSpec
from models.networks import Network, build_model


@dataclass(frozen=True)
class Trained:
    model: Network
    train_images: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@pytest.fixture(scope="session")
def trained() -> Trained:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    digits = load_digits()
    images = np.repeat(np.repeat(digits.images / 16, 2, axis=1), 2, axis=2)[:, None]
    images, labels = images.astype(np.float32), torch.from_numpy(digits.target)
    spec = ModelSpec(channels=1, image_size=16, classes=10, width=16, mean=(0.3,), std=(0.35,))
    model = build_model(spec, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x = torch.from_numpy(images)
    for _ in range(8):
        for start in range(0, 1200, 50):
            batch = slice(start, start + 50)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    return Trained(model.eval(), images[:1200], images[1200:], digits.target[1200:])
