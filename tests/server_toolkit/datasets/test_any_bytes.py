"""Whatever a file holds, it is read as what it says or refused by name."""

import gzip

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server_toolkit.datasets.cifar import read_batch
from server_toolkit.datasets.idx import read_idx
from server_toolkit.errors import ConfigError
from tests.server_toolkit.datasets.test_cifar import records
from tests.server_toolkit.datasets.test_idx import idx

ANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WHOLE = {
    "images": idx(np.arange(24).reshape(2, 3, 4)),
    "images.gz": gzip.compress(idx(np.arange(24).reshape(2, 3, 4)), mtime=0),
    "batch.bin": records([1, 2]),
}


def damaged(data):
    """A cut, a run of other bytes somewhere, or both."""
    return st.builds(
        lambda place, new, end: (data[:place] + new + data[place + len(new) :])[:end],
        st.integers(0, min(len(data), 40)),
        st.binary(max_size=12),
        st.integers(0, len(data) + 8),
    )


def read_or_refusal(read):
    try:
        return read()
    except ConfigError as error:
        return str(error)


@ANY
@given(st.data())
def test_idx(tmp_path, data):
    name = data.draw(st.sampled_from(["images", "images.gz"]))
    path = tmp_path / name
    path.write_bytes(data.draw(damaged(WHOLE[name]) | st.binary(max_size=64)))
    found = read_or_refusal(lambda: read_idx(path, dimensions=3))
    if isinstance(found, str):
        assert str(path) in found
    else:
        assert found.ndim == 3
        assert found.size <= 1032 * path.stat().st_size


@ANY
@given(damaged(WHOLE["batch.bin"]) | st.binary(max_size=64))
def test_cifar_batch(tmp_path, data):
    path = tmp_path / "batch.bin"
    path.write_bytes(data)
    found = read_or_refusal(lambda: read_batch(path))
    if isinstance(found, str):
        assert str(path) in found
    else:
        assert len(found) * 3073 == len(data)
        assert found.labels.max() < 10
