import gzip
import os
import re

import numpy as np
import pytest

from server_toolkit.datasets.idx import load_idx, read_idx
from server_toolkit.errors import ConfigError


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


PIXELS = np.arange(3 * 5 * 4).reshape(3, 5, 4)
LABELS = np.array([2, 0, 1])


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_labels_are_read_as_they_were_written(tmp_path, packed):
    for name, array in (("images", PIXELS), ("labels", LABELS)):
        data = idx(array)
        file = tmp_path / (f"{name}.gz" if packed else name)
        file.write_bytes(gzip.compress(data) if packed else data)
    found = load_idx(tmp_path / "images", tmp_path / "labels", classes=3)
    assert (found.pixels.dtype, found.pixels.shape) == (np.uint8, (3, 1, 5, 4))
    assert (found.pixels[:, 0] == PIXELS).all()
    assert found.labels.tolist() == [2, 0, 1]


WHOLE = idx(PIXELS)
PACKED = gzip.compress(WHOLE)
HUGE = bytes([0, 0, 8, 3]) + b"\xff" * 12
DAMAGED = {
    "nothing": b"",
    "half a header": WHOLE[:9],
    "another type": b"\0\0\x0d\x03" + WHOLE[4:],
    "labels": idx(LABELS),
    "no IDX at all": b"PK" + WHOLE[2:],
    "cut": WHOLE[:-1],
    "too long": WHOLE + b"\0",
    "2**96 pixels": HUGE + b"\0" * 100,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(tmp_path, data, packed):
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(WHOLE)[:-9],
        b"\x1f\x8b" + b"\0" * 40,
        WHOLE,
        gzip.compress(WHOLE)[:-8] + b"12345678",
    ],
    ids=["cut", "garbage", "not packed", "wrong checksum"],
)
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path, data):
    path = tmp_path / "images.gz"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"images\.gz is no whole gzip file"):
        read_idx(path, dimensions=3)


@pytest.fixture
def unpacked(monkeypatch):
    """How many bytes were asked of gzip files, read by read."""
    asked, read = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda f, n: asked.append(n) or read(f, n))
    return asked


def test_a_packed_bomb_is_not_unpacked(tmp_path, unpacked):
    """A small header and then megabytes of zeros: reading stops a byte behind the header's end."""
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(WHOLE + bytes(1 << 26)))
    with pytest.raises(ConfigError, match="goes on behind its end"):
        read_idx(path, dimensions=3)
    assert sum(unpacked) < 1000


def test_a_header_that_no_gzip_stream_could_fill_is_refused_before_unpacking(tmp_path, unpacked):
    path = tmp_path / "images.gz"
    header = bytes([0, 0, 8, 3]) + (60_000).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
    path.write_bytes(gzip.compress(header + bytes(100)))
    with pytest.raises(ConfigError, match="promises 47040000 bytes"):
        read_idx(path, dimensions=3)
    assert unpacked == [16]


def test_a_packed_bomb_with_an_honest_header_is_not_unpacked(tmp_path, unpacked, monkeypatch):
    monkeypatch.setattr("server_toolkit.datasets.idx.MAX_BYTES", 1 << 16)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((600, 11, 10)))))
    with pytest.raises(ConfigError, match="promises 66000 bytes; at most 65536"):
        read_idx(path, dimensions=3)
    assert unpacked == [16]


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    (tmp_path / "images").write_bytes(idx(PIXELS))
    (tmp_path / "labels").write_bytes(idx(LABELS[:2]))
    with pytest.raises(ConfigError, match="3 images, labels 2 labels"):
        load_idx(tmp_path / "images", tmp_path / "labels", classes=3)
    (tmp_path / "labels").write_bytes(idx(np.array([0, 3, 1])))
    with pytest.raises(ConfigError, match="label 3 of image 1; there are 3 classes"):
        load_idx(tmp_path / "images", tmp_path / "labels", classes=3)


@pytest.mark.parametrize("shape", [(0, 28, 28), (2, 0, 28), (1, 1, 600)])
def test_images_that_no_network_takes_are_refused(tmp_path, shape):
    (tmp_path / "images").write_bytes(idx(np.zeros(shape)))
    (tmp_path / "labels").write_bytes(idx(np.zeros(shape[0])))
    with pytest.raises(ConfigError, match="sides of 1 to 512"):
        load_idx(tmp_path / "images", tmp_path / "labels", classes=10)


def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ConfigError, match="no regular file"):
            read_idx(tmp_path / name, dimensions=3)
    with pytest.raises(ConfigError, match="missing: No such file"):
        read_idx(tmp_path / "missing", dimensions=3)
