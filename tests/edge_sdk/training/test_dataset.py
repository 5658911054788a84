import numpy as np
import pytest
import torch
from PIL import Image

from edge_sdk.errors import ConfigError
from edge_sdk.training import Dataset, load_dataset, load_digits, load_folder, load_npz
from tests.edge_sdk.conftest import convnet


def images(shape=(6, 1, 16, 16)):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (images() + 1, LABELS, r"must lie in \[0, 1\]"),
        (images() * np.float32(np.nan), LABELS, r"must lie in \[0, 1\]"),
        (images(), LABELS - 1, "from -1 to 1"),
        (images(), LABELS + 1, "from 1 to 3"),
        (images(), LABELS[:5], "labels are"),
        (images().astype(np.float64), LABELS, "float64"),
        (images()[:, 0], LABELS, "expected"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(pixels, labels, message):
    with pytest.raises(ConfigError, match=message):
        Dataset(pixels, labels, 3)


def test_28_pixels_get_a_border_to_32():
    data = Dataset(images((6, 1, 28, 28)), LABELS, 3).fit_to(convnet(image_size=32))
    assert data.images.shape == (6, 1, 32, 32)
    assert np.array_equal(data.images[:, :, 2:30, 2:30], images((6, 1, 28, 28)))
    assert data.images.sum() == pytest.approx(images((6, 1, 28, 28)).sum(), rel=1e-5)
    assert data.classes == 10


def test_what_does_not_fit_says_what_to_do():
    data = Dataset(images(), LABELS, 3)
    with pytest.raises(ConfigError, match="1 channels, the model takes 3; convert"):
        data.fit_to(convnet(channels=3))
    with pytest.raises(ConfigError, match="16x16, the model takes 32x32; resize"):
        data.fit_to(convnet(image_size=32))
    with pytest.raises(ConfigError, match="3 classes, the model 2"):
        data.fit_to(convnet(classes=2))


def test_npz_of_bytes_and_of_floats(tmp_path):
    grey = np.arange(6 * 16 * 16).reshape(6, 16, 16) % 256
    np.savez(tmp_path / "a.npz", images=grey.astype(np.uint8), labels=LABELS.astype(np.uint8))
    data = load_npz(tmp_path / "a.npz")
    assert data.images.shape == (6, 1, 16, 16)
    np.testing.assert_allclose(data.images[:, 0], grey / 255, rtol=1e-6)
    assert data.pixels.nbytes == 6 * 16 * 16  # bytes stay bytes
    assert data.labels.tolist() == LABELS.tolist()
    assert data.classes == 3
    np.savez(tmp_path / "b.npz", images=images((6, 3, 8, 8)).astype(np.float64), labels=LABELS)
    assert np.array_equal(load_npz(tmp_path / "b.npz").images, images((6, 3, 8, 8)))


def test_damaged_npz_files_are_named(tmp_path):
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], object), labels=LABELS)
    np.savez(tmp_path / "keys.npz", pictures=images())
    np.savez(tmp_path / "labels.npz", images=images(), labels=LABELS * 0.5)
    np.savez(tmp_path / "range.npz", images=images() * 255, labels=LABELS)
    np.savez(tmp_path / "integers.npz", images=images().astype(np.int32), labels=LABELS)
    whole = (tmp_path / "range.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[:1000])
    (tmp_path / "random.npz").write_bytes(bytes(range(256)))
    for path in [*tmp_path.iterdir(), tmp_path / "missing.npz"]:
        with pytest.raises(ConfigError, match=path.name):
            load_npz(path)


def test_a_folder_gives_classes_in_the_order_of_their_names(tmp_path):
    for name, value in (("zebra", 255), ("ant", 51)):
        (tmp_path / name).mkdir()
        for suffix in ("png", "PNG"):
            picture = Image.fromarray(np.full((16, 16, 3), value, np.uint8))
            picture.save(tmp_path / name / f"{suffix}.{suffix}")
        (tmp_path / name / "notes.txt").write_text("not an image")
    data = load_folder(tmp_path, channels=3)
    assert data.images.shape == (4, 3, 16, 16)
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.images[0].max() == pytest.approx(0.2)
    assert load_dataset("folder", tmp_path, convnet()).images.shape == (4, 1, 16, 16)


def test_a_damaged_or_odd_image_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "a" / "1.png")
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "2.png").write_bytes(whole[:40])
    with pytest.raises(ConfigError, match=r"2\.png is no readable image"):
        load_folder(tmp_path, channels=1)
    Image.new("L", (16, 12)).save(tmp_path / "a" / "2.png")
    with pytest.raises(ConfigError, match=r"2\.png is 16x12"):
        load_folder(tmp_path, channels=1)


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="one a class"):
        load_folder(tmp_path, channels=1)
    with pytest.raises(ConfigError, match="none: No such"):
        load_folder(tmp_path / "none", channels=1)


def test_digits_are_enlarged_as_torch_does_it():
    from sklearn.datasets import load_digits as original

    small = torch.from_numpy(original().images[:20] / 16)[:, None]
    expected = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear").numpy()
    data = load_digits(16)
    assert len(data) == 1797
    np.testing.assert_allclose(data.images[:20], expected, atol=1e-6)
    assert load_dataset("digits", None, convnet(channels=3)).images.shape == (1797, 3, 16, 16)


def test_a_source_without_its_path_is_refused():
    with pytest.raises(ConfigError, match="npz needs a path"):
        load_dataset("npz", None, convnet())
