import numpy as np
import pytest

from server_toolkit.distill.tensor_file import read_tensor_file, write_tensor_file
from server_toolkit.errors import ConfigError

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int64)}
FIELDS = {"step": 3, "loss": 0.25, "names": ["x"]}


def test_what_was_written_is_read_the_same_bytes_each_time(tmp_path):
    for name in ("one", "two"):
        write_tensor_file(tmp_path / name, TENSORS, FIELDS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    tensors, fields = read_tensor_file(tmp_path / "one", max_bytes=10_000)
    assert fields == FIELDS
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "file"
    write_tensor_file(path, TENSORS, FIELDS)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="remove it"):
            read_tensor_file(path, max_bytes=10_000)
