"""The demo's split: test images are seen by nobody, server images by no device."""

import json

import numpy as np

from edge_sdk.training.sources import load_digits, load_npz
from server_toolkit.demo.digits import divide_digits, split_indices

DEVICES = ["cam-01", "cam-02", "cam-03", "cam-04"]


def test_parts_are_disjoint_and_complete():
    labels = load_digits(16).labels
    parts = split_indices(labels, seed=0)
    together = np.concatenate(parts)
    assert len(together) == len(labels) == len(np.unique(together))


def test_the_server_has_five_real_images_a_class(tmp_path):
    files = divide_digits(tmp_path, DEVICES, seed=0)
    assert np.bincount(load_npz(files.server_set).labels).tolist() == [5] * 10


def test_every_device_has_a_share_of_its_own(tmp_path):
    files = divide_digits(tmp_path, DEVICES, seed=0)
    shares = json.loads(files.partition.read_text())["devices"]
    assert sorted(shares) == DEVICES
    given_out = [i for share in shares.values() for i in share]
    assert sorted(given_out) == list(range(len(load_npz(files.devices))))
    assert min(files.images_per_device.values()) > 0


def test_no_image_of_one_part_is_in_another(tmp_path):
    files = divide_digits(tmp_path, DEVICES, seed=0)
    seen = {}
    for path in (files.devices, files.server_set, files.test):
        for image in load_npz(path).images:
            assert seen.setdefault(image.tobytes(), path) == path


def test_the_seed_fixes_the_division(tmp_path):
    first = divide_digits(tmp_path / "a", DEVICES, seed=3)
    second = divide_digits(tmp_path / "b", DEVICES, seed=3)
    assert first.partition.read_text() == second.partition.read_text()
    assert np.array_equal(load_npz(first.test).images, load_npz(second.test).images)
