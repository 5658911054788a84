"""A proxy set comes back from its file as it was, and nothing else comes back at all."""

import dataclasses

import numpy as np
import pytest

from models import ModelSpec
from server_toolkit.distill.proxy_set import ProxySet
from server_toolkit.distill.tensor_file import write_tensor_file
from server_toolkit.errors import ConfigError

SPEC = ModelSpec(channels=1, image_size=8, classes=3, width=4, depth=2, mean=(0.3,), std=(0.4,))


def proxy_set(**changes):
    rng = np.random.default_rng(0)
    values = dict(
        images=rng.random((6, 1, 8, 8), np.float32),
        labels=np.full((6, 3), 1 / 3, np.float32),
        hard_labels=np.repeat(np.arange(3), 2),
        step_size=0.25,
        spec=SPEC,
        metadata={"ledger_id": "x", "rounds": [0, 1]},
    )
    return ProxySet(**{**values, **changes})


def raw_file(path, fields, **tensors):
    values = dict(
        images=np.zeros((3, 1, 8, 8), np.float32),
        labels=np.eye(3, dtype=np.float32),
        hard_labels=np.arange(3),
    )
    header = {
        "format": "trajsyn-proxy-set",
        "format_version": 1,
        "step_size": 0.1,
        "model": SPEC.to_dict(),
        "metadata": {},
    }
    values.update(tensors)
    write_tensor_file(path, values, {**header, **fields})


def test_file_gives_back_every_field(tmp_path):
    saved = proxy_set()
    saved.save(tmp_path / "proxy.safetensors")
    loaded = ProxySet.load(tmp_path / "proxy.safetensors")
    for field in dataclasses.fields(ProxySet):
        np.testing.assert_equal(getattr(loaded, field.name), getattr(saved, field.name))
    assert [p.name for p in tmp_path.iterdir()] == ["proxy.safetensors"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(images=np.zeros((6, 1, 8, 9), np.float32)), "images"),
        (dict(images=np.full((6, 1, 8, 8), 1.5, np.float32)), "images"),
        (dict(images=np.full((6, 1, 8, 8), np.nan, np.float32)), "images"),
        (dict(images=np.zeros((6, 1, 8, 8))), "float64"),
        (dict(labels=np.ones((6, 3), np.float32)), "labels"),
        (dict(labels=np.full((6, 3), np.nan, np.float32)), "labels"),
        (dict(hard_labels=np.full(6, 3)), "hard_labels"),
        (dict(step_size=0.0), "step_size"),
        (dict(step_size=float("inf")), "step_size"),
    ],
)
def test_values_out_of_shape_or_range_are_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        proxy_set(**changes)


@pytest.mark.parametrize(
    ("fields", "tensors", "says"),
    [
        ({"format": "other"}, {}, "format"),
        ({"format_version": 2}, {}, "format_version"),
        ({"surprise": 1}, {}, "surprise"),
        ({"step_size": "big"}, {}, "step_size"),
        ({"metadata": []}, {}, "metadata"),
        ({"model": {"channels": 1}}, {}, "model"),
        ({}, {"extra": np.zeros(1)}, "extra"),
        ({}, {"images": np.zeros((3, 1, 8, 8), np.float16)}, "images"),
    ],
)
def test_file_with_a_wrong_field_names_file_and_field(tmp_path, fields, tensors, says):
    path = tmp_path / "odd.safetensors"
    raw_file(path, fields, **tensors)
    with pytest.raises(ConfigError, match=rf"odd\.safetensors.*{says}"):
        ProxySet.load(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"\xff" * 40, b"not a tensor file at all"])
def test_any_other_bytes_are_refused(tmp_path, content):
    path = tmp_path / "junk.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"junk\.safetensors"):
        ProxySet.load(path)


def test_missing_or_oversized_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        ProxySet.load(tmp_path / "none.safetensors")
    proxy_set().save(tmp_path / "proxy.safetensors")
    with pytest.raises(ConfigError, match="at most 100"):
        ProxySet.load(tmp_path / "proxy.safetensors", max_bytes=100)
