"""Parameter layout: one flat vector, one fingerprint, no torch."""

import subprocess
import sys

import numpy as np
import pytest

from models import ModelSpec, Parameter, ParameterLayout, SpecError, layout_of

SPEC = ModelSpec(channels=1, image_size=16, classes=10, width=8, mean=(0.5,), std=(0.25,))


def test_split_and_join_are_inverse():
    layout = layout_of(SPEC)
    flat = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    assert np.array_equal(layout.join(layout.split(flat)), flat)


def test_split_places_values_in_order():
    layout = ParameterLayout((Parameter("a", (2, 2)), Parameter("b", (3,))))
    parts = layout.split(np.arange(7, dtype=np.float32))
    assert parts["a"].tolist() == [[0, 1], [2, 3]]
    assert parts["b"].tolist() == [4, 5, 6]


def test_fingerprint_changes_with_name_shape_and_order():
    a, b = Parameter("a", (2,)), Parameter("b", (2,))
    prints = {
        ParameterLayout(ps).fingerprint
        for ps in [(a, b), (b, a), (a,), (a, Parameter("c", (2,))), (a, Parameter("b", (2, 1)))]
    }
    assert len(prints) == 5


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float64)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(1, np.float32)},
    ],
)
def test_join_refuses_arrays_of_another_network(arrays):
    layout = ParameterLayout((Parameter("a", (2,)), Parameter("b", (2,))))
    with pytest.raises(ValueError, match=r"b|c"):
        layout.join(arrays)


def test_spec_round_trips_and_refuses_unknown_fields():
    assert ModelSpec.from_dict(SPEC.to_dict()) == SPEC
    with pytest.raises(SpecError, match="hidden"):
        ModelSpec.from_dict(SPEC.to_dict() | {"hidden": 1})
    with pytest.raises(SpecError, match="width"):
        ModelSpec.from_dict(SPEC.to_dict() | {"width": True})


def test_layout_needs_no_torch():
    code = "import sys, models; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
