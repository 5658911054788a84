import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edge_sdk.errors import ConfigError as EdgeConfigError
from edge_sdk.training.sources import load_folder
from server_toolkit.datasets import load_dataset
from server_toolkit.errors import ConfigError


def write(path, value, *, mode="L", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


def load(root, **options):
    return load_dataset(f"folder:{root}", **options)


def test_train_and_test_folders_are_the_two_parts(tmp_path):
    for part, offset in (("train", 0), ("test", 100)):
        for label, name in enumerate(("cat", "dog")):
            write(tmp_path / part / name / "a.png", offset + label)
    found = load(tmp_path)
    assert found.train.pixels[:, 0, 0, 0].tolist() == [0, 1]
    assert found.test.pixels[:, 0, 0, 0].tolist() == [100, 101]
    assert found.train.labels.tolist() == found.test.labels.tolist() == [0, 1]
    assert found.train.pixels.shape == (2, 1, 8, 8)


def test_one_folder_is_split_by_seed_into_disjoint_parts_with_every_class(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        for index in range(10):
            write(tmp_path / name / f"{index}.png", 20 * label + index)
    parts = [load(tmp_path, seed=seed) for seed in (0, 0, 1)]
    tests = [sorted(p.test.pixels[:, 0, 0, 0].tolist()) for p in parts]
    assert tests[0] == tests[1] != tests[2]
    assert np.bincount(parts[0].test.labels).tolist() == [2, 2]
    everything = tests[0] + parts[0].train.pixels[:, 0, 0, 0].tolist()
    assert sorted(everything) == [*range(10), *range(20, 30)]


def test_one_coloured_image_makes_all_of_them_colour(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "cat" / "a.png", 7)
        write(tmp_path / part / "dog" / "b.png", 9, mode="RGB")
    found = load(tmp_path)
    assert found.train.pixels.shape[1] == 3
    assert found.train.pixels[:, :, 0, 0].tolist() == [[7, 7, 7], [9, 0, 0]]


@pytest.mark.parametrize("count", [0, 2])
def test_a_class_of_which_none_could_be_tested_is_refused_by_name(tmp_path, count):
    for index in range(9):
        write(tmp_path / "cat" / f"{index}.png", index)
    (tmp_path / "dog").mkdir()
    for index in range(count):
        write(tmp_path / "dog" / f"{index}.png", index)
    with pytest.raises(ConfigError, match=rf"dog has {count} images"):
        load(tmp_path)


def test_a_file_of_another_format_is_refused_whatever_its_name(tmp_path):
    write(tmp_path / "train" / "cat" / "a.png", 1)
    write(tmp_path / "test" / "cat" / "a.png", 1)
    Image.new("L", (8, 8)).save(tmp_path / "train" / "cat" / "b.png", format="EPS")
    with pytest.raises(ConfigError, match=r"b\.png is no readable image"):
        load(tmp_path)
    with pytest.raises(EdgeConfigError, match=r"b\.png is no readable image"):
        load_folder(tmp_path / "train", channels=1)


def png_of(width, height):
    """A PNG file that promises a size and holds nothing of it."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no image", r"dog/b\.png is no readable image"),
        (png_of(40_000, 40_000), r"dog/b\.png"),  # pillow itself calls that a bomb
        (png_of(8000, 8000), r"dog/b\.png is 8000x8000"),
        (png_of(8, 9), r"dog/b\.png is 8x9"),
        (png_of(9, 9), r"dog/b\.png"),  # unlike the others
    ],
    ids=["text", "bomb", "large", "not square", "of another size"],
)
def test_a_file_that_is_no_fitting_image_is_refused_by_name(tmp_path, data, message):
    write(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "b.png").write_bytes(data)
    with pytest.raises((ConfigError, EdgeConfigError), match=message):
        load(tmp_path)


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    write(tmp_path / "train" / "cat" / "a.png", 1)
    with pytest.raises(ConfigError, match="has train alone"):
        load(tmp_path)
    write(tmp_path / "test" / "dog" / "a.png", 1)
    with pytest.raises(ConfigError, match="cat, dog must be a class of both"):
        load(tmp_path)
    write(tmp_path / "test" / "cat" / "a.png", 1)
    write(tmp_path / "train" / "dog" / "a.png", 1)
    for path in (tmp_path / "test").rglob("*.png"):
        write(path, 1, size=(9, 9))
    with pytest.raises(ConfigError, match="differ in size"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        load(tmp_path / "nowhere")
