"""Programs that are slow to export, once for the whole test run."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from edge_sdk.runtime import build, set_threads
from edge_sdk.training import Dataset
from models import ModelSpec


def convnet(*, channels=1, image_size=16, width=8, classes=10):
    return ModelSpec(
        channels=channels,
        image_size=image_size,
        classes=classes,
        width=width,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )


@pytest.fixture(scope="session")
def runtime():
    """The native library, built if it is not up to date."""
    build.build()
    set_threads(1)


@pytest.fixture(scope="session")
def training_program(runtime):
    """A function from a spec and a micro-batch to the checked training program."""
    from edge_sdk.export import training_program as export

    @functools.cache
    def make(spec, micro_batch):
        return export(spec, micro_batch=micro_batch)

    return make


@pytest.fixture(scope="session")
def attack_program(runtime):
    """A function from a spec and a micro-batch to the checked attack program."""
    from edge_sdk.export import attack_program as export

    @functools.cache
    def make(spec, micro_batch):
        return export(spec, micro_batch=micro_batch)

    return make


@pytest.fixture(scope="session")
def small_training_program(training_program):
    """ConvNet of width 8 at 1x16x16, micro-batch 4."""
    return training_program(convnet(), 4)


@pytest.fixture(scope="session")
def small_evaluation_program(runtime):
    """ConvNet of width 8 at 1x16x16, batch 16."""
    from edge_sdk.export import evaluation_program as export

    return export(convnet(), batch=16)


@pytest.fixture
def small_dataset():
    """Forty images whose class is where their bright square lies."""
    rng = np.random.default_rng(3)
    labels = rng.integers(10, size=40)
    images = rng.random((40, 1, 16, 16), dtype=np.float32) * np.float32(0.3)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
    return Dataset(images, labels, 10)
