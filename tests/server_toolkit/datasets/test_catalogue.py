import gzip

import numpy as np
import pytest

from edge_sdk.training.sources import load_digits
from server_toolkit.datasets import catalogue, load_dataset
from server_toolkit.errors import ConfigError
from tests.server_toolkit.datasets.test_cifar import records
from tests.server_toolkit.datasets.test_idx import idx


def write_idx(folder, brightness, *, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 4), ("t10k", 2)):
        arrays = {
            "images-idx3": np.full((count, 28, 28), brightness),
            "labels-idx1": np.arange(count),
        }
        for kind, array in arrays.items():
            name, data = f"{part}-{kind}-ubyte", idx(array)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(
                gzip.compress(data) if packed else data
            )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("folder", ["", "mnist", "mnist/raw"])
def test_mnist_is_found_where_it_is_usually_put(tmp_path, folder, packed):
    write_idx(tmp_path / folder, 5, packed=packed)
    found = load_dataset("mnist", tmp_path)
    assert (len(found.train), len(found.test)) == (4, 2)
    assert found.train.pixels.shape[1:] == (1, 28, 28)


def test_two_sets_with_the_same_file_names_are_told_apart_by_their_folders(tmp_path):
    write_idx(tmp_path, 1)
    write_idx(tmp_path / "fashion_mnist", 2)
    assert load_dataset("mnist", tmp_path).train.pixels.max() == 1
    assert load_dataset("fashion_mnist", tmp_path).train.pixels.max() == 2


@pytest.mark.parametrize("folder", ["", "cifar10", "cifar10/cifar-10-batches-bin"])
def test_cifar10_is_found_where_it_is_usually_put(tmp_path, folder):
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "data_batch_1.bin").write_bytes(records([1]))
    (place / "test_batch.bin").write_bytes(records([2]))
    assert load_dataset("cifar10", tmp_path).test.labels.tolist() == [2]


def test_a_part_of_cifar10_is_taken_and_said_to_be_one(tmp_path, caplog):
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(records([1, 2]))
    found = load_dataset("cifar10", tmp_path)
    assert len(found.train) == 4
    assert found.remark == (
        "cifar10: only a part of what is published, 4 of 50,000 training and 2 of 10,000 test "
        "images; data_batch_3.bin, data_batch_4.bin, data_batch_5.bin are not there."
    )
    assert caplog.messages == [f"in {tmp_path}, {found.remark}"]


def test_a_whole_published_set_and_one_that_is_not_published_are_not_remarked_on(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setitem(catalogue.PUBLISHED_IMAGES, "mnist", (4, 2))
    write_idx(tmp_path, 1, packed=True)
    assert load_dataset("mnist", tmp_path).remark is None
    assert load_dataset("digits").remark is None
    assert not caplog.messages


def test_digits_are_the_enlarged_ones_each_in_one_part():
    whole = load_digits(16)
    found = load_dataset("digits", seed=3)
    assert found.train.pixels.shape[1:] == (1, 16, 16)
    assert len(found.train) + len(found.test) == len(whole)
    shares = np.bincount(found.test.labels) / np.bincount(whole.labels)
    assert abs(shares - 0.25).max() < 0.01
    both = np.concatenate([found.train.images, found.test.images]).sum((1, 2, 3))
    error = np.abs(np.sort(both) - np.sort(whole.images.sum((1, 2, 3))))
    assert error.max() < 256 * 0.5 / 255
    other = load_dataset("digits", seed=4)
    assert not np.array_equal(other.test.pixels, found.test.pixels)


def test_what_is_missing_is_named_and_where_it_was_looked_for(tmp_path):
    with pytest.raises(ConfigError, match="choose from mnist, fashion_mnist"):
        load_dataset("imagenet", tmp_path)
    with pytest.raises(ConfigError, match="in which directory"):
        load_dataset("mnist")
    with pytest.raises(ConfigError, match=f"no test_batch.bin in {tmp_path}/cifar10"):
        load_dataset("cifar10", tmp_path)
    write_idx(tmp_path, 1)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigError, match="t10k-labels-idx1-ubyte: No such file"):
        load_dataset("mnist", tmp_path)
