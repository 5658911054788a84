import json

import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.training import load_partition, make_partition, write_partition

LABELS = np.repeat(np.arange(10), 30)
DEVICES = ["cam-01", "cam-02", "cam-03"]


def write(path, devices, **changes):
    content = {"format": "trajsyn-partition-1", "dataset": "d", "devices": devices} | changes
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "classes"])
def test_every_example_goes_to_exactly_one_device_and_the_seed_fixes_which(kind):
    parts, again, other = (
        make_partition(LABELS, DEVICES, kind=kind, seed=seed, classes_per_device=4)
        for seed in (0, 0, 1)
    )
    assert sorted(np.concatenate(list(parts.values()))) == list(range(300))
    assert all(np.array_equal(parts[d], again[d]) for d in DEVICES)
    assert any(not np.array_equal(parts[d], other[d]) for d in DEVICES)


def test_only_the_given_examples_are_shared_out():
    pool = np.arange(0, 300, 3)
    parts = make_partition(LABELS, DEVICES, kind="dirichlet", seed=0, indices=pool)
    assert sorted(np.concatenate(list(parts.values()))) == pool.tolist()


def test_a_small_alpha_gives_each_device_fewer_classes():
    def largest_share(alpha):
        parts = make_partition(LABELS, DEVICES, kind="dirichlet", seed=0, alpha=alpha)
        counts = np.array([np.bincount(LABELS[p], minlength=10) for p in parts.values()])
        return (counts.max(axis=0) / counts.sum(axis=0)).mean()

    assert largest_share(0.1) > 0.7 > 0.45 > largest_share(100.0)


@pytest.mark.parametrize(("count", "each"), [(5, 2), (7, 3), (20, 1), (3, 10)])
def test_each_device_has_so_many_classes_and_each_class_about_as_many_devices(count, each):
    devices = [f"cam-{i:02}" for i in range(count)]
    parts = make_partition(LABELS, devices, kind="classes", seed=3, classes_per_device=each)
    held = np.array([np.bincount(LABELS[p], minlength=10) for p in parts.values()])
    assert ((held > 0).sum(axis=1) == each).all()
    holders = (held > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for column in held.T:
        shares = column[column > 0]
        assert shares.max() - shares.min() <= 1


@pytest.mark.parametrize(
    ("count", "each", "message"),
    [(3, 11, "there are 10"), (3, 0, "there are 10"), (3, 2, "to nobody"), (400, 1, "fewer")],
)
def test_classes_that_cannot_be_shared_out_so_are_refused(count, each, message):
    labels = LABELS if count < 100 else np.repeat(LABELS[::30], 40)[:-20]
    devices = [f"cam-{i:03}" for i in range(count)]
    with pytest.raises(ConfigError, match=message):
        make_partition(
            labels, devices[: len(labels)], kind="classes", seed=0, classes_per_device=each
        )


def test_a_written_partition_is_read_back(tmp_path):
    parts = make_partition(LABELS, DEVICES, kind="iid", seed=0)
    write_partition(tmp_path / "p.json", parts, dataset="digits")
    for device in DEVICES:
        found = load_partition(tmp_path / "p.json", device, examples=300)
        assert np.array_equal(found, parts[device])


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ({"a": [0, 1, 1]}, "example 1 of a is given out twice"),
        ({"a": [0], "b": [0]}, "example 0 of b is given out twice"),
        ({"a": [10]}, "from 0 to 9"),
        ({"a": [-1]}, "from 0 to 9"),
        ({"a": [1.0]}, "expected integers"),
        ({"a": [True]}, "expected integers"),
        ({"a": []}, "a has no examples"),
        ({"a": 3}, "no list"),
        ({"b": [1]}, "no device 'a'; it has b"),
    ],
)
def test_a_wrong_partition_says_what_is_wrong(tmp_path, devices, message):
    with pytest.raises(ConfigError, match=message):
        load_partition(write(tmp_path / "p.json", devices), "a", examples=10)


def test_other_files_are_no_partition(tmp_path):
    path = write(tmp_path / "p.json", {"a": [1]}, format="trajsyn-partition-2")
    with pytest.raises(ConfigError, match="must be trajsyn-partition-1"):
        load_partition(path, "a", examples=10)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"p\.json"):
        load_partition(path, "a", examples=10)
    with pytest.raises(ConfigError, match="No such file"):
        load_partition(tmp_path / "none.json", "a", examples=10)


def test_impossible_partitions_are_refused():
    with pytest.raises(ConfigError, match="too few"):
        make_partition(LABELS[:2], DEVICES, kind="iid", seed=0)
    with pytest.raises(ConfigError, match="each once"):
        make_partition(LABELS, ["a", "a"], kind="iid", seed=0)
    names = [f"d{i}" for i in range(100)]
    with pytest.raises(ConfigError, match="raise alpha"):
        make_partition(LABELS, names, kind="dirichlet", seed=0, alpha=0.01)
