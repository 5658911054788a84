"""Start images have the asked-for shape, range, classes and seed."""

import dataclasses

import numpy as np
import pytest

from models import ModelSpec
from server_toolkit.distill.initial_images import ServerSet, initial_images
from server_toolkit.errors import ConfigError, DistillationError

SPEC = ModelSpec(
    channels=2, image_size=8, classes=3, width=4, depth=2, mean=(0.3, 0.3), std=(0.4, 0.4)
)


def server_set(labels=(0, 1, 2, 0, 1, 2)):
    images = np.random.default_rng(0).random((len(labels), 2, 8, 8), np.float32)
    return ServerSet(images, np.array(labels, np.int64))


@pytest.mark.parametrize("start", ["noise", "structured", "shapes", "textures", "server_set"])
def test_shape_range_labels_and_seed(start):
    def make(seed):
        return initial_images(start, SPEC, images_per_class=2, seed=seed, server_set=server_set())

    images, labels = make(1)
    assert images.shape == (6, 2, 8, 8)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(images, make(1)[0])
    assert not np.array_equal(images, make(2)[0])


@pytest.mark.parametrize("start", ["shapes", "textures"])
def test_structured_images_are_smoother_than_noise(start):
    def roughness(start):
        images, _ = initial_images(start, SPEC, images_per_class=20, seed=0)
        return np.abs(np.diff(images, axis=3)).mean() / images.std()

    assert roughness(start) < 0.6 * roughness("noise")


@pytest.mark.parametrize(("channels", "kind"), [(1, "shapes"), (3, "textures")])
def test_structured_are_shapes_in_grey_and_textures_in_colour(channels, kind):
    spec = dataclasses.replace(
        SPEC, channels=channels, mean=(0.3,) * channels, std=(0.4,) * channels
    )
    ours, theirs = (
        initial_images(start, spec, images_per_class=2, seed=0)[0] for start in ("structured", kind)
    )
    assert np.array_equal(ours, theirs)


def test_server_set_gives_every_image_once_before_it_repeats_any():
    own = server_set()
    images, labels = initial_images("server_set", SPEC, images_per_class=3, seed=0, server_set=own)
    for label in range(3):
        mine = images[labels == label]
        originals = own.images[own.labels == label]
        assert all(any(np.array_equal(m, o) for m in mine) for o in originals)


def test_server_set_that_does_not_serve_is_refused():
    def start_from(server_set):
        initial_images("server_set", SPEC, images_per_class=1, seed=0, server_set=server_set)

    with pytest.raises(DistillationError, match="needs a server set"):
        start_from(None)
    with pytest.raises(DistillationError, match="class 2"):
        start_from(server_set(labels=(0, 1, 1)))
    with pytest.raises(DistillationError, match="network takes"):
        start_from(ServerSet(np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, np.int64)))
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        ServerSet(np.full((1, 2, 8, 8), 255, np.float32), np.zeros(1, np.int64))


def test_server_blends_mix_two_moved_images_of_the_class_and_of_no_other():
    flat = np.array([[0.2, 0.6], [0.9, 1.0], [0.0, 0.1]], np.float32)  # grey values by class
    pixels = np.ones((6, 2, 8, 8), np.float32) * flat.reshape(6, 1, 1, 1)
    own = ServerSet(pixels, np.repeat(np.arange(3), 2))
    images, labels = initial_images(
        "server_blends", SPEC, images_per_class=50, seed=0, server_set=own
    )
    for label, (low, high) in enumerate(flat):
        values = images[labels == label].reshape(50, -1)
        assert (values.std(axis=1) < 1e-6).all()  # moved with their own edge, never with black
        assert values.min() >= low - 1e-6
        assert values.max() <= high + 1e-6
        between = (values[:, 0] > low + 0.01) & (values[:, 0] < high - 0.01)
        assert between.sum() >= 10
