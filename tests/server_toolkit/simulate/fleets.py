"""Networks and random images for federations of a few devices."""

import numpy as np

from edge_sdk.training import Dataset
from models import ModelSpec
from models.layers import Convolution, InstanceNorm, Linear, MaxPool, ReLU
from models.networks import build_model, flat_parameters

LINEAR = ModelSpec(
    architecture="chain", channels=1, image_size=4, classes=3, mean=(0.5,), std=(0.25,)
)
CONVNET = ModelSpec(channels=1, image_size=8, classes=3, width=6, depth=2, mean=(0.4,), std=(0.3,))
MIXED = ModelSpec(
    architecture="chain",
    channels=3,
    image_size=9,
    classes=4,
    mean=(0.4, 0.5, 0.6),
    std=(0.3, 0.2, 0.25),
    layers=(
        Convolution(outputs=5, kernel=3),
        ReLU(),
        MaxPool(size=2),
        Convolution(outputs=4, kernel=3, bias=False),
        InstanceNorm(),
        ReLU(),
        Linear(outputs=7),
        ReLU(),
    ),
)


def images(spec, count, *, seed):
    rng = np.random.default_rng(seed)
    shape = (count, spec.channels, spec.image_size, spec.image_size)
    pixels = rng.integers(0, 256, shape).astype(np.uint8)
    return Dataset(pixels, rng.integers(0, spec.classes, count), spec.classes)


def shards(spec, *sizes):
    return [images(spec, size, seed=index) for index, size in enumerate(sizes)]


def first_weights(spec, seed=0):
    return flat_parameters(build_model(spec, seed=seed))
