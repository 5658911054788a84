"""Random shapes have the tones of the data: its mean and deviation, channel by channel."""

import numpy as np
import pytest

from models import ModelSpec
from server_toolkit.distill.random_shapes import match_tones, random_shapes


def spec(mean, std, image_size=16):
    return ModelSpec(
        channels=len(mean),
        image_size=image_size,
        classes=2,
        width=4,
        depth=2,
        mean=mean,
        std=std,
    )


def shapes(mean, std, count=200, seed=0):
    return random_shapes(spec(mean, std), count, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.1307,), (0.3081,)),  # MNIST's, FashionMNIST's, CIFAR-10's
        ((0.286,), (0.353,)),
        ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    ],
)
def test_the_set_has_the_datas_mean_and_deviation(mean, std):
    images = shapes(mean, std)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.mean(axis=(0, 2, 3)) == pytest.approx(mean, abs=0.002)
    assert images.std(axis=(0, 2, 3)) == pytest.approx(std, abs=0.002)


def test_a_ramp_gets_the_curve_that_is_known_for_it():
    # Uniform values squeezed into [0.2, 0.6] have mean 0.4 and deviation 0.4 / sqrt(12).
    ramp = ((np.arange(10_000) + 0.5) / 10_000).astype(np.float32).reshape(1, 1, 100, 100)
    toned = match_tones(ramp, mean=(0.4,), std=(0.4 / 12**0.5,))
    assert toned == pytest.approx(0.2 + 0.4 * ramp, abs=1e-3)


def test_channels_have_curves_of_their_own():
    images = shapes((0.2, 0.7), (0.1, 0.3))
    assert images.mean(axis=(0, 2, 3)) == pytest.approx([0.2, 0.7], abs=0.002)
    assert images.std(axis=(0, 2, 3)) == pytest.approx([0.1, 0.3], abs=0.002)


def test_a_deviation_that_cannot_be_reached_gives_the_nearest():
    assert shapes((0.3,), (1e-9,)).std() < 1e-3  # next to nothing
    images = shapes((0.3,), (0.9,))  # more than black and white have
    assert images.std() == pytest.approx((0.3 * 0.7) ** 0.5, abs=0.02)
    assert images.mean() == pytest.approx(0.3, abs=0.01)


def test_images_without_tones_of_their_own_stay_numbers_in_range():
    flat = np.full((2, 1, 4, 4), 0.5, np.float32)
    toned = match_tones(flat, mean=(0.25,), std=(0.2,))
    assert toned == pytest.approx(np.full_like(flat, 0.25), abs=1e-3)
    assert shapes((0.3,), (0.3,), count=0).shape == (0, 1, 16, 16)


def test_images_of_few_shapes_are_among_those_of_many():
    def edges(image):
        return (np.abs(np.diff(image, axis=2)) > 0.02).mean()

    found = sorted(edges(image) for image in shapes((0.5,), (0.25,)))
    assert found[180] > 2 * found[20]
