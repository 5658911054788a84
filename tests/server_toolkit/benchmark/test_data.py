import numpy as np
import pytest

from server_toolkit.benchmark.data import split
from server_toolkit.benchmark.presets import with_choices
from server_toolkit.benchmark.robustness import plan_benchmark
from server_toolkit.datasets import load_dataset
from server_toolkit.errors import ConfigError
from tests.server_toolkit.benchmark.made_up import tiny
from tests.server_toolkit.datasets.test_cifar import records

DIGITS = load_dataset("digits")


def parts(seed=0, device_images=200, server=4, test=50):
    return split(
        DIGITS,
        seed=seed,
        device_images=device_images,
        server_images_per_class=server,
        test_images=test,
    )


def as_set(dataset):
    return {image.tobytes() for image in dataset.pixels}


def test_nobody_sees_another_ones_images():
    whole = parts(device_images=None)
    devices, server, test = (as_set(p) for p in (whole.devices, whole.server, whole.test))
    assert not devices & server
    assert not server & test
    assert len(whole.devices) + len(whole.server) == len(DIGITS.train)


def test_the_first_server_images_are_the_smaller_server_sets():
    server = parts().server
    for size in (1, 2, 4):
        assert (np.bincount(server.labels[: size * 10]) == size).all()


def test_the_first_test_images_are_as_balanced_as_all():
    assert (np.bincount(parts().test.labels[:20]) == 2).all()


def test_a_seed_fixes_the_parts_and_another_changes_all():
    for name in ("devices", "server", "test"):
        same = [getattr(parts(seed=s), name).pixels for s in (0, 0, 1)]
        assert np.array_equal(same[0], same[1])
        assert not np.array_equal(same[0], same[2])


def test_a_server_that_would_take_a_whole_class_is_refused():
    with pytest.raises(ConfigError, match="leaves the devices none"):
        parts(server=1000)


def test_a_part_of_a_published_set_is_told_on_the_page(tmp_path):
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(records([*range(10)] * 4))
    plan = plan_benchmark(with_choices(tiny(), datasets=("cifar10",)), directory=tmp_path)
    assert any("40 of 50,000 training" in remark for remark in plan.remarks)
