"""Updates: int8 codes by hand, error feedback that loses nothing, fp32 exact, garbage refused."""

import random

import numpy as np
import pytest

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.tensors import compress, decompress, pack, unpack
from edge_sdk.protocol.updates import decode_update, decode_weights, encode_update, encode_weights
from models import ModelSpec, Parameter, ParameterLayout, layout_of

TINY = ParameterLayout((Parameter("w", (2, 1, 1, 2)), Parameter("b", (3,))))
CONVNET = layout_of(ModelSpec(channels=1, image_size=32, classes=10, mean=(0.5,), std=(0.25,)))


def normal(layout, seed, scale=0.01):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal(layout.size)).astype(np.float32)


def stored(data):
    layout = {
        "w.q": ((2, 1, 1, 2), np.int8),
        "w.scale": ((2,), np.float32),
        "b.q": ((3,), np.int8),
        "b.scale": ((1,), np.float32),
    }
    return unpack(decompress(data, max_bytes=1 << 21), layout)


def int8_file(**changes):
    arrays = {
        "w.q": np.ones((2, 1, 1, 2), np.int8),
        "w.scale": np.ones(2, np.float32),
        "b.q": np.ones(3, np.int8),
        "b.scale": np.ones(1, np.float32),
    }
    return compress(pack({**arrays, **changes}))


def test_int8_codes_and_scales_by_hand():
    # Rows of w: max 127 -> scale 1; max 63.5 -> scale 0.5. b: max 254 -> scale 2.
    update = np.array([127, -2.4, 63.5, -0.9, 254, -3.1, 1.1], np.float32)
    encoded = encode_update(update, TINY, "int8")
    arrays = stored(encoded.data)
    assert arrays["w.scale"].tolist() == [1.0, 0.5]
    assert arrays["w.q"].ravel().tolist() == [127, -2, 127, -2]
    assert arrays["b.scale"].tolist() == [2.0]
    assert arrays["b.q"].tolist() == [127, -2, 1]
    decoded = decode_update(encoded.data, TINY, "int8")
    assert decoded.tolist() == [127, -2, 63.5, -1, 254, -4, 2]
    np.testing.assert_allclose(encoded.residual, [0, -0.4, 0, 0.1, 0, 0.9, -0.9], atol=1e-6)


def test_the_error_is_at_most_half_a_step_of_its_own_channel():
    update = np.array([1000, 3, 0.001, 0.0005, 5, 1, 2], np.float32)
    decoded = decode_update(encode_update(update, TINY, "int8").data, TINY, "int8")
    steps = np.array([1000, 1000, 0.001, 0.001, 5, 5, 5]) / 127
    assert (np.abs(decoded - update) <= steps / 2 * 1.0001).all()


def test_a_zero_channel_stays_zero_and_has_no_residual():
    update = np.array([0, 0, 5, 1, 0, 0, 0], np.float32)
    encoded = encode_update(update, TINY, "int8")
    arrays = stored(encoded.data)
    assert arrays["w.scale"][0] == arrays["b.scale"][0] == 0
    decoded = decode_update(encoded.data, TINY, "int8")
    assert decoded[[0, 1, 4, 5, 6]].tolist() == [0] * 5
    assert encoded.residual[[0, 1, 4, 5, 6]].tolist() == [0] * 5


def test_values_too_small_for_a_scale_wait_in_the_residual():
    update = np.full(7, 1e-45, np.float32)
    encoded = encode_update(update, TINY, "int8")
    total = decode_update(encoded.data, TINY, "int8") + encoded.residual
    assert np.array_equal(total, update)


def test_the_residual_is_exactly_what_the_server_does_not_see():
    update = normal(CONVNET, 0)
    encoded = encode_update(update, CONVNET, "int8")
    decoded = decode_update(encoded.data, CONVNET, "int8")
    assert np.array_equal(decoded + encoded.residual, update)
    assert encoded.residual.dtype == np.float32


def test_over_twenty_rounds_nothing_is_lost_but_the_last_residual():
    layout = layout_of(
        ModelSpec(channels=1, image_size=16, classes=10, width=8, mean=(0.5,), std=(0.25,))
    )
    true, decoded = np.zeros(layout.size), np.zeros(layout.size)
    residual, without_feedback = None, np.zeros(layout.size)
    for seed in range(20):
        update = normal(layout, seed) + np.float32(2e-5)  # a drift below one step
        encoded = encode_update(update, layout, "int8", residual=residual)
        residual = encoded.residual
        true += update
        decoded += decode_update(encoded.data, layout, "int8")
        plain = encode_update(update, layout, "int8").data
        without_feedback += decode_update(plain, layout, "int8")
    np.testing.assert_allclose(decoded + residual, true, rtol=0, atol=1e-7)
    # The test could not tell if rounding errors cancelled by themselves.
    assert np.linalg.norm(true - without_feedback) > 2 * np.linalg.norm(true - decoded)


def test_fp32_is_exact_and_leaves_nothing_behind():
    update = normal(CONVNET, 1)
    encoded = encode_update(update, CONVNET, "fp32")
    assert np.array_equal(decode_update(encoded.data, CONVNET, "fp32"), update)
    assert not encoded.residual.any()


def test_a_residual_of_int8_rounds_is_paid_out_by_fp32():
    first = encode_update(normal(TINY, 1), TINY, "int8")
    second = encode_update(np.zeros(7, np.float32), TINY, "fp32", residual=first.residual)
    assert np.array_equal(decode_update(second.data, TINY, "fp32"), first.residual)


@pytest.mark.parametrize("encoding", ["int8", "fp32"])
def test_encoding_and_decoding_are_repeatable_to_the_bit(encoding):
    update = normal(CONVNET, 2)
    first, second = (encode_update(update, CONVNET, encoding) for _ in range(2))
    assert first.data == second.data
    decoded = [decode_update(first.data, CONVNET, encoding).tobytes() for _ in range(2)]
    assert decoded[0] == decoded[1]


def test_int8_needs_at_most_a_quarter_of_the_bytes_of_fp32_at_width_128():
    update = normal(CONVNET, 3)
    assert len(encode_update(update, CONVNET, "int8").data) <= 0.25 * 4 * CONVNET.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", ["int8", "fp32"])
def test_a_diverged_update_is_not_encoded(bad, encoding):
    update = np.zeros(7, np.float32)
    update[3] = bad
    with pytest.raises(ValueError, match="diverged"):
        encode_update(update, TINY, encoding)
    with pytest.raises(ValueError, match="diverged"):
        encode_update(np.zeros(7, np.float32), TINY, encoding, residual=update)


@pytest.mark.parametrize("shape", [6, 8, (7, 1)])
def test_a_vector_of_another_layout_is_not_encoded(shape):
    with pytest.raises(ValueError, match="another network"):
        encode_update(np.zeros(shape, np.float32), TINY, "int8")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"w.scale": np.array([1, np.nan], np.float32)}, "w.scale"),
        ({"w.scale": np.array([np.inf, 1], np.float32)}, "w.scale"),
        ({"w.scale": np.array([1, -1], np.float32)}, "w.scale"),
        ({"w.scale": np.ones(1, np.float32)}, "w.scale"),
        ({"b.q": np.ones(4, np.int8)}, "b.q"),
        ({"b.q": np.ones(3, np.uint8)}, "b.q"),
        ({"c.q": np.ones(3, np.int8)}, "c.q"),
    ],
)
def test_a_misfit_is_refused_and_named(changes, named):
    with pytest.raises(ProtocolError, match=named):
        decode_update(int8_file(**changes), TINY, "int8")


@pytest.mark.filterwarnings("error")
def test_an_update_that_overflows_is_refused_quietly():
    huge = np.array([3e38, 1], np.float32)
    data = int8_file(**{"w.scale": huge, "w.q": np.full((2, 1, 1, 2), 127, np.int8)})
    with pytest.raises(ProtocolError, match="overflows"):
        decode_update(data, TINY, "int8")


def test_one_encoding_is_not_read_as_the_other():
    update = normal(TINY, 4)
    for written, read in (("int8", "fp32"), ("fp32", "int8")):
        with pytest.raises(ProtocolError):
            decode_update(encode_update(update, TINY, written).data, TINY, read)


def test_an_update_of_another_network_is_refused():
    data = encode_update(normal(CONVNET, 5), CONVNET, "int8").data
    with pytest.raises(ProtocolError):
        decode_update(data, TINY, "int8")


def test_mutants_of_an_update_raise_nothing_but_protocol_errors():
    rng = random.Random(11)
    data = encode_update(normal(TINY, 6), TINY, "int8").data
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            flat = decode_update(bytes(damaged), TINY, "int8")
        except ProtocolError:
            continue
        assert flat.shape == (7,)
        assert np.isfinite(flat).all()


def test_weights_are_exact_and_garbage_is_refused():
    weights = normal(CONVNET, 7)
    data = encode_weights(weights, CONVNET)
    assert np.array_equal(decode_weights(data, CONVNET), weights)
    weights[0] = np.nan
    for bad in (b"", data[:-1], data + b"x", compress(data), encode_weights(weights, CONVNET)):
        with pytest.raises(ProtocolError):
            decode_weights(bad, CONVNET)
