"""Random textures have spectra, contrasts and colours as they are said to have."""

import numpy as np
import pytest

from models import ModelSpec
from server_toolkit.distill import random_textures as textures

CIFAR = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
SPEC = ModelSpec(channels=3, image_size=32, classes=2, width=4, mean=CIFAR[0], std=CIFAR[1])


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("side", [16, 33])
def test_a_field_has_the_spectrum_that_was_asked_for(slope, side):
    fields = textures._fields((400, 1, side, side), np.full((1, 1, 1, 1), slope), rng())
    power = (np.abs(np.fft.fft2(fields)) ** 2).mean(axis=(0, 1))
    along = power[0, 1 : side // 2 - 1]
    frequency = np.arange(1, side // 2 - 1)
    measured = -np.polyfit(np.log(frequency), np.log(along), 1)[0] / 2
    assert measured == pytest.approx(slope, abs=0.05)
    assert power[0, 0] == pytest.approx(0, abs=1e-9)
    assert fields.std(axis=(2, 3)) == pytest.approx(1)


def test_the_set_has_the_datas_mean_and_deviation():
    images = textures.random_textures(SPEC, 200, rng())
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.mean(axis=(0, 2, 3)) == pytest.approx(CIFAR[0], abs=0.002)
    assert images.std(axis=(0, 2, 3)) == pytest.approx(CIFAR[1], abs=0.002)


def test_most_of_the_deviation_is_between_the_images():
    images = textures.random_textures(SPEC, 400, rng())
    within = images.std(axis=(2, 3)).mean()
    between = images.mean(axis=(2, 3)).std(axis=0).mean()
    assert within < 0.7 * between


def test_channels_vary_together_but_not_as_one():
    images = textures.random_textures(SPEC, 200, rng())
    flat = images.reshape(200, 3, -1)
    found = np.array([np.corrcoef(image)[0, 1] for image in flat])
    assert 0.6 < np.median(found) < 0.999


def test_a_seed_fixes_the_images_and_none_are_none():
    first, again, other = (textures.random_textures(SPEC, 3, rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert textures.random_textures(SPEC, 0, rng()).shape == (0, 3, 32, 32)
