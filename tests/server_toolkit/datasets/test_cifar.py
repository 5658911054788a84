import numpy as np
import pytest

from server_toolkit.datasets.cifar import RECORD_BYTES, load_cifar10
from server_toolkit.errors import ConfigError


def records(labels, *, first=0):
    """A record a label: the first red, green and blue pixel say which record it is."""
    rows = np.zeros((len(labels), RECORD_BYTES), np.uint8)
    rows[:, 0] = labels
    for plane in range(3):
        rows[:, 1 + 1024 * plane] = first + np.arange(len(labels)) + 50 * plane
    return rows.tobytes()


@pytest.fixture
def batches(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(records([3, 9, 0]))
    (tmp_path / "data_batch_2.bin").write_bytes(records([5], first=3))
    (tmp_path / "test_batch.bin").write_bytes(records([1, 2]))
    return tmp_path


def test_batches_of_any_length_are_joined_in_order(batches):
    train, test = load_cifar10(batches)
    assert train.pixels.shape == (4, 3, 32, 32)
    assert train.labels.tolist() == [3, 9, 0, 5]
    assert train.pixels[:, :, 0, 0].tolist() == [[i, 50 + i, 100 + i] for i in range(4)]
    assert not train.pixels[:, :, 0, 1:].any()
    assert test.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data_batch_2.bin", records([5])[:-1], "data_batch_2.bin is damaged"),
        ("test_batch.bin", b"", "test_batch.bin is damaged"),
        ("data_batch_1.bin", records([3, 10]), "data_batch_1.bin: record 1 has the label 10"),
    ],
)
def test_a_damaged_batch_is_refused_by_name(batches, name, data, message):
    (batches / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load_cifar10(batches)


@pytest.mark.parametrize("name", ["data_batch_1.bin", "test_batch.bin"])
def test_a_batch_that_is_missing_before_others_is_named(batches, name):
    (batches / name).unlink()
    with pytest.raises(ConfigError, match=name):
        load_cifar10(batches)
