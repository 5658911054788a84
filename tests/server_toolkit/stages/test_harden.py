"""What a model is hardened on: the proxy set, real images, or both in like numbers."""

import numpy as np
import pytest

from edge_sdk.training.dataset import Dataset
from models import ModelSpec
from server_toolkit.distill.proxy_set import ProxySet
from server_toolkit.stages.harden import _training_set

SPEC = ModelSpec(channels=1, image_size=8, classes=2, width=4, depth=2, mean=(0.0,), std=(1.0,))


def proxy(count):
    hard = np.arange(count) % 2
    labels = np.where(np.eye(2)[hard] > 0, 0.75, 0.25).astype(np.float32)
    images = np.full((count, 1, 8, 8), 0.25, np.float32)
    return ProxySet(
        images=images, labels=labels, hard_labels=hard, step_size=0.1, spec=SPEC, metadata={}
    )


def real(count):
    return Dataset(np.full((count, 1, 8, 8), 0.5, np.float32), np.arange(count) % 2, 2)


@pytest.mark.parametrize(("synthetic", "own", "times"), [(20, 10, 2), (20, 4, 5), (4, 10, 1)])
def test_real_images_are_repeated_to_about_the_number_of_synthetic_ones(synthetic, own, times):
    images, labels = _training_set(proxy(synthetic), real(own), soft=False, classes=2)
    assert len(images) == len(labels) == synthetic + times * own
    assert (images == 0.5).all(axis=(1, 2, 3)).sum() == times * own


def test_either_source_alone_is_taken_once():
    assert len(_training_set(None, real(10), soft=False, classes=2)[0]) == 10
    assert len(_training_set(proxy(6), None, soft=False, classes=2)[0]) == 6


def test_soft_labels_are_learned_for_synthetic_images_and_certain_for_real_ones():
    _, labels = _training_set(proxy(2), real(2), soft=True, classes=2)
    assert labels.tolist() == [[0.75, 0.25], [0.25, 0.75], [1, 0], [0, 1]]
