"""Every message: round trip, bounds, direction, and garbage."""

import contextlib
import dataclasses
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.messages import (
    DOWNLINK,
    MAX_BLOB_BYTES,
    MAX_MESSAGE_BYTES,
    UPLINK,
    BlobRef,
    Done,
    InstallReport,
    Message,
    Need,
    Offer,
    Reject,
    Release,
    ReleaseFile,
    ReleaseHealth,
    Status,
    Task,
    TrainingSettings,
    decode_message,
    encode_message,
)

SHA = "0123456789abcdef" * 4
BLOB = BlobRef(sha256=SHA, size=1_193_320)
EVERY_TYPE = typing.get_args(Message)

EXAMPLES = [
    Task(
        run="run-1",
        round=7,
        layout="0123456789abcdef",
        program=BLOB,
        base=BLOB,
        training=TrainingSettings(
            epochs=2,
            batch_size=32,
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=0.0,
            proximal_mu=0.0,
            seed=5,
        ),
        encoding="int8",
        issued_at_s=1.5e9,
        expires_at_s=1.6e9,
    ),
    Release(
        name="digits",
        version=3,
        created_at_s=1.5e9,
        expires_at_s=1.6e9,
        model={"architecture": "convnet", "mean": [0.5], "width": 128},
        fp32=ReleaseFile(blob=BLOB, max_abs_diff=1e-4),
        int8=ReleaseFile(blob=BLOB, max_abs_diff=0.5),
        reference=BLOB,
        health=ReleaseHealth(min_accuracy=0.5, max_accuracy_drop=0.1),
        metrics={"clean": 0.97, "pgd20": 0.6},
    ),
    Offer(
        device="pi-7",
        blob=BLOB,
        run="run-1",
        round=7,
        base_sha256=SHA,
        layout="0123456789abcdef",
        encoding="fp32",
        samples=100,
        steps=8,
        loss_first=2.3,
        loss_last=0.1,
        wall_s=12.5,
        cpu_s=11.0,
        peak_rss_bytes=80_000_000,
    ),
    Need(device="pi-7", sha256=SHA, ranges=((0, 2), (5, 6))),
    Done(device="pi-7", sha256=SHA, verdict="accepted"),
    Reject(device="pi-7", sha256=SHA, reason="stale", permanent=True, retry_after_s=0.0),
    InstallReport(
        device="pi-7",
        release="digits",
        version=3,
        verdict="rolled_back",
        reason="accuracy fell",
        active_version=2,
        precision="int8",
        trial_max_abs_diff=0.01,
        local_accuracy=None,
        inference_ms=3.5,
        at_s=1.5e9,
    ),
    Status(
        device="pi-7",
        at_s=1.5e9,
        agent_version="0.1.0",
        state="train",
        detail="step 3 of 8",
        round=None,
        active_version=0,
        samples=100,
        bytes_up=10,
        bytes_down=20,
        outbox=1,
    ),
]
IDS = [m.type for m in EXAMPLES]


def fields_of(message):
    return json.loads(encode_message(message))


def refused(fields):
    with pytest.raises(ProtocolError):
        decode_message(json.dumps(fields).encode(), EVERY_TYPE)


def leaves(fields, path=()):
    """Every (path, value) of a message that is no object itself."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def replaced(fields, path, value):
    head, *rest = path
    return {**fields, head: replaced(fields[head], rest, value) if rest else value}


def test_there_is_an_example_of_every_type():
    assert {type(m) for m in EXAMPLES} == set(EVERY_TYPE)
    assert len({cls.type for cls in EVERY_TYPE}) == len(EVERY_TYPE)


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_a_message_survives_the_round_trip(message):
    data = encode_message(message)
    assert decode_message(data, (type(message),)) == message
    assert len(data) < 2048


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_every_field_is_required_and_no_other_is_taken(message):
    fields = fields_of(message)
    for name in fields:
        refused({k: v for k, v in fields.items() if k != name})
    refused({**fields, "odd": 1})


OUT_OF_BOUNDS = [2**63, -(2**63), 10**400, 1e308 * 10, "x" * 5000, [[0, 1]] * 5000, {}, True]


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_no_field_takes_unbounded_values(message):
    fields = fields_of(message)
    for path, value in leaves(fields):
        free_form = path[0] in ("model", "metrics")
        for bad in OUT_OF_BOUNDS:
            if (free_form and not isinstance(bad, int | float)) or type(bad) is type(value) is bool:
                continue
            if path[0] == "model" and bad is True:
                continue  # any JSON; `ModelSpec.from_dict` judges it
            refused(replaced(fields, path, bad))


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_no_count_size_or_time_is_negative(message):
    fields = fields_of(message)
    for path, value in leaves(fields):
        if type(value) in (int, float) and path[0] not in (
            "model",
            "metrics",
            "loss_first",
            "loss_last",
            "trial_max_abs_diff",
            "inference_ms",
        ):
            refused(replaced(fields, path, -1))


@pytest.mark.parametrize(
    "device", ["all", "+", "#", "a/b", "ab", "a" * 41, "-ab", "Pi-7", "pi-7\n"]
)
def test_a_device_field_obeys_the_topics_rule(device):
    for message in EXAMPLES:
        if hasattr(message, "device"):
            refused({**fields_of(message), "device": device})


@pytest.mark.parametrize(
    "blob",
    [
        {"sha256": SHA.upper(), "size": 1},
        {"sha256": SHA + "\n", "size": 1},
        {"sha256": SHA[:-1], "size": 1},
        {"sha256": "../" + SHA[3:], "size": 1},
        {"sha256": SHA, "size": 0},
        {"sha256": SHA, "size": MAX_BLOB_BYTES + 1},
        {"sha256": SHA, "size": 1.0},
        {"sha256": SHA},
    ],
)
def test_a_blob_reference_is_a_hash_and_a_bounded_size(blob):
    offer = next(m for m in EXAMPLES if isinstance(m, Offer))
    refused({**fields_of(offer), "blob": blob})


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [[0, 0]],
        [[2, 1]],
        [[-1, 1]],
        [[0, 2**24 + 1]],
        [[0, 1, 2]],
        [[0]],
        [0, 1],
        [[0, True]],
        [[i, i + 1] for i in range(65)],
    ],
)
def test_a_need_has_1_to_64_half_open_ranges(ranges):
    need = next(m for m in EXAMPLES if isinstance(m, Need))
    refused({**fields_of(need), "ranges": ranges})


def test_the_largest_need_fits_into_a_message():
    top = 2**24
    need = Need(device="a" * 40, sha256=SHA, ranges=tuple((top - 1, top) for _ in range(64)))
    data = encode_message(need)
    assert len(data) < MAX_MESSAGE_BYTES
    assert decode_message(data, DOWNLINK) == need


def test_a_need_cannot_be_built_with_ranges_that_the_other_side_would_refuse():
    with pytest.raises(ValueError, match="ranges"):
        Need(device="pi-7", sha256=SHA, ranges=())


@pytest.mark.parametrize("message", EXAMPLES, ids=IDS)
def test_a_type_counts_only_in_its_own_direction(message):
    data = encode_message(message)
    for direction in (UPLINK, DOWNLINK, (Task,), (Release,)):
        if type(message) in direction:
            assert decode_message(data, direction) == message
        else:
            with pytest.raises(ProtocolError, match="not expected here"):
                decode_message(data, direction)


@pytest.mark.parametrize(
    "kind", [None, "", "Offer", "offers", 1, ["offer"], {"offer": 1}, "x" * 999]
)
def test_an_unknown_type_is_refused(kind):
    refused({**fields_of(EXAMPLES[2]), "type": kind})


def test_a_message_over_the_size_limit_is_refused_unread():
    data = encode_message(EXAMPLES[4])
    padded = data + b" " * (MAX_MESSAGE_BYTES - len(data))
    assert decode_message(padded, EVERY_TYPE) == EXAMPLES[4]
    with pytest.raises(ProtocolError, match="at most"):
        decode_message(padded + b" ", EVERY_TYPE)


def test_a_number_that_is_not_finite_cannot_be_sent():
    diverged = dataclasses.replace(EXAMPLES[2], loss_last=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        encode_message(diverged)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(st.sampled_from(EXAMPLES), st.randoms(use_true_random=False), ANY_JSON)
def test_a_message_with_one_field_of_garbage_is_taken_whole_or_refused(message, random, garbage):
    fields = fields_of(message)
    path, _ = random.choice(list(leaves(fields)))
    data = json.dumps(replaced(fields, path, garbage)).encode()
    try:
        decoded = decode_message(data, EVERY_TYPE)
    except ProtocolError:
        return
    assert decode_message(encode_message(decoded), EVERY_TYPE) == decoded


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_protocol_errors(data):
    with pytest.raises(ProtocolError):
        decode_message(data, EVERY_TYPE)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_message_with_damaged_bytes_raises_nothing_but_protocol_errors(message, data):
    damaged = bytearray(encode_message(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        decode_message(bytes(damaged), EVERY_TYPE)
