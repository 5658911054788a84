"""Every refusal of design section 5, in the order of the checks, told from the outside."""

import dataclasses
import hashlib
import random
import re

import numpy as np
import pytest

from edge_sdk.protocol.messages import ENCODING, BlobRef, Done, Reject
from edge_sdk.protocol.signing import seal
from edge_sdk.protocol.tensors import compress, pack
from edge_sdk.protocol.updates import decode_update, encode_update
from server_toolkit.ingest.checks import RefusedOfferError, check_update
from server_toolkit.ledger.schema import Update
from tests.server_toolkit.fleet import LAYOUT, FakeDevice, random_flat
from tests.server_toolkit.ingest.conversation import LIMITS, Conversation

MSG = "fl/v1/camera-1/up/msg"
CHUNK = "fl/v1/camera-1/up/chunk"


def fp32_update(change):
    """Return the bytes of an fp32 update whose arrays `change` has edited."""
    arrays = dict(LAYOUT.split(random_flat(1, 0.01)))
    change(arrays)
    return compress(pack(arrays))


def bad_content(name):
    first = LAYOUT.parameters[0].name

    def rename(arrays):
        arrays["other"] = arrays.pop(first)

    def reshape(arrays):
        arrays[first] = arrays[first].reshape(-1)

    def retype(arrays):
        arrays[first] = arrays[first].astype(np.float64)

    def nan(arrays):
        arrays[first][0] = np.nan

    def infinity(arrays):
        arrays[first][0] = np.inf

    return {
        "no zstd": b"these bytes are no zstd frame at all",
        "no safetensors": compress(b"these bytes are no tensor file"),
        "bomb": compress(bytes(1 << 28)),
        "renamed": fp32_update(rename),
        "reshaped": fp32_update(reshape),
        "float64": fp32_update(retype),
        "nan": fp32_update(nan),
        "infinity": fp32_update(infinity),
    }[name]


@pytest.mark.parametrize(
    "topic",
    ["fl/v1/all/up/msg", "fl/v1/camera-1/dn/msg", "fl/v1/camera-1/up/other", "x", "fl/v1/A/up/msg"],
)
def test_a_foreign_topic_is_refused_first(server, topic):
    assert server.send(topic, b"x") == []
    assert "topic" in server.reasons()[0] or "device id" in server.reasons()[0]


@pytest.mark.parametrize(("topic", "size"), [(MSG, 33_000), (CHUNK, 61_482)])
def test_size_is_refused_before_content(server, topic, size):
    server.send(topic, bytes(size))
    assert server.reasons() == [f"{size} bytes on a {topic.rsplit('/', 1)[1]} topic"]


@pytest.mark.parametrize("payload", [b"", b"{}", b"A" * 88 + b"\n{}", b"A" * 88 + b"\n[]"])
def test_no_envelope_or_schema_no_answer(server, device, payload):
    assert server.send(MSG, payload) == []
    assert len(server.reasons()) == 1


def test_an_unknown_device_is_not_answered(server, ledger):
    stranger = FakeDevice("stranger-1")
    offer, _ = stranger.update(ledger)
    assert server.say(stranger, offer) == []
    assert server.reasons() == ["device stranger-1 is not enrolled"]


def test_a_disabled_device_is_not_answered(server, ledger, device):
    offer, _ = device.update(ledger)
    ledger.disable_device(device.id)
    assert server.say(device, offer) == []
    assert server.reasons() == ["device camera-1 is disabled"]


def test_another_key_is_not_answered(server, ledger, device):
    offer, _ = device.update(ledger)
    imposter = FakeDevice(device.id)
    assert server.say(imposter, offer) == []
    assert "signature" in server.reasons()[0]
    assert not list((ledger.directory / "incoming").glob("*"))


def test_a_device_cannot_speak_for_another(server, ledger, device):
    other = FakeDevice("camera-2").enrol(ledger)
    offer, _ = other.update(ledger)
    assert server.send(MSG, device.seal(offer)) == []
    assert "in the name of camera-2" in server.reasons()[0]


def test_another_devices_signed_offer_cannot_be_replayed_on_ones_own_topic(server, ledger, device):
    other = FakeDevice("camera-2").enrol(ledger)
    offer, _ = other.update(ledger)
    assert server.send(MSG, other.seal(offer)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"blob": BlobRef(sha256="0" * 64, size=LIMITS.max_update_bytes + 1)}, "limit"),
        ({"run": "run-2"}, "run-2"),
        ({"round": 1}, "has not begun"),
        ({"base_sha256": "1" * 64}, "not the base"),
        ({"layout": "0" * 16}, "layout"),
    ],
)
def test_an_offer_must_fit_the_run(server, ledger, device, changes, reason):
    offer, _ = device.update(ledger)
    (answer,) = server.say(device, dataclasses.replace(offer, **changes))
    assert isinstance(answer, Reject)
    assert answer.permanent
    assert reason in answer.reason
    assert reason in server.reasons()[0]


def test_a_second_update_of_a_round_is_refused(server, ledger, device):
    assert isinstance(server.upload(device, *device.update(ledger, seed=1)), Done)
    answer = server.upload(device, *device.update(ledger, seed=2))
    assert isinstance(answer, Reject)
    assert "recorded already" in answer.reason
    assert len(ledger.updates()) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no zstd", "not zstd"),
        ("no safetensors", "not a tensor file"),
        ("bomb", "unpacks to"),
        ("renamed", "unknown or missing"),
        ("reshaped", "expected"),
        ("float64", "expected"),
        ("nan", "NaN or infinity"),
        ("infinity", "NaN or infinity"),
    ],
)
def test_content_that_is_no_update_is_refused_and_not_kept(server, ledger, device, name, reason):
    data = bad_content(name)
    answer = server.upload(device, device.offer(ledger, data, encoding="fp32"), data)
    assert isinstance(answer, Reject)
    assert answer.permanent
    assert reason in answer.reason
    assert not ledger.blobs.has(hashlib.sha256(data).hexdigest())
    assert [p for p in (ledger.directory / "incoming").rglob("*") if p.is_file()] == []
    assert ledger.updates() == []


ENCODINGS = ["int8", "int4", "topk-0.1", "topk-0.001", "fp32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_counts_and_is_rebuilt_from_the_ledger(server, ledger, device, encoding):
    offer, data = device.update(ledger, encoding=encoding)
    assert isinstance(server.upload(device, offer, data), Done)
    (row,) = ledger.updates()
    update = decode_update(data, LAYOUT, encoding)
    assert row.encoding == encoding
    assert row.norm == pytest.approx(np.linalg.norm(update.astype(np.float64)), rel=1e-12)
    expected = ledger.global_weights(0) + update
    assert np.array_equal(ledger.device_weights(device.id, 0), expected)


def test_the_longest_encoding_fits_its_column():
    (column,) = Update.__table__.c.encoding.base_columns
    assert re.fullmatch(ENCODING, "topk-0.999")
    assert not re.fullmatch(ENCODING, "topk-0.9999")
    assert len("topk-0.999") <= column.type.length


@pytest.mark.parametrize("claimed", ENCODINGS)
def test_an_update_that_is_not_in_the_encoding_of_its_offer_is_refused(
    server, ledger, device, claimed
):
    for number, written in enumerate(e for e in ENCODINGS if e != claimed):
        _, data = device.update(ledger, seed=number, encoding=written)
        answer = server.upload(device, device.offer(ledger, data, encoding=claimed), data)
        assert isinstance(answer, Reject)
        assert answer.permanent
    assert ledger.updates() == []


def sparse_update(gaps=(0, 1, 1), codes=(1, 1, 1), scale=0x3F80):
    """Three entries; topk-0.004 of this network is three of its 795."""
    planes = [[gap >> shift & 255 for gap in gaps] for shift in (0, 8, 16, 24)]
    arrays = {
        "gaps": np.array(planes, np.uint8),
        "codes": np.array(codes, np.int8),
        "scale": np.array([scale], np.uint16),
    }
    return compress(pack(arrays))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (sparse_update(gaps=(5, 0, 1)), "repeated"),
        (sparse_update(gaps=(0, 1, LAYOUT.size)), "reaches place"),
        (sparse_update(gaps=(2**32 - 1, 2**32 - 1, 2)), "reaches place"),
        (sparse_update(gaps=(0, 1), codes=(1, 1)), "expected"),
        (sparse_update(gaps=(0, 1, 1, 1), codes=(1, 1, 1, 1)), "expected"),
        (sparse_update(codes=(1, -128, 1)), "-128"),
        (sparse_update(scale=0x7F80), "infinite"),
        (sparse_update(scale=0x7F7F, codes=(127, 1, 1)), "overflows"),
        (compress(bytes(1 << 28)), "unpacks to"),
    ],
)
def test_a_sparse_update_that_nobody_can_have_made_is_refused(server, ledger, device, data, reason):
    answer = server.upload(device, device.offer(ledger, data, encoding="topk-0.004"), data)
    assert isinstance(answer, Reject)
    assert answer.permanent
    assert reason in answer.reason
    assert ledger.updates() == []


def test_three_entries_are_what_the_sparse_updates_above_have(server, ledger, device):
    data = sparse_update()
    assert isinstance(
        server.upload(device, device.offer(ledger, data, encoding="topk-0.004"), data), Done
    )


@pytest.mark.parametrize("encoding", ["int2", "topk-0.0", "topk-0.10", "topk-1", "topk-0.0001", ""])
def test_an_offer_in_an_unknown_encoding_is_no_message(server, ledger, device, encoding):
    offer, _ = device.update(ledger)
    assert server.say(device, dataclasses.replace(offer, encoding=encoding)) == []
    assert "encoding" in server.reasons()[0]


def test_weights_beyond_float32_are_refused(ledger, device):
    large = np.full(LAYOUT.size, np.float32(3e38))
    data = encode_update(large, LAYOUT, "fp32").data
    offer = device.offer(ledger, data, encoding="fp32")
    with pytest.raises(RefusedOfferError, match="out of float32"):
        check_update(ledger, offer, data, large, limits=LIMITS)
    assert check_update(ledger, offer, data, -large, limits=LIMITS) > 1e38


def test_the_norm_is_bounded(ledger, device):
    offer, data = device.update(ledger, encoding="fp32")
    norm = float(np.linalg.norm(random_flat(1, 0.01).astype(np.float64)))
    tight = Conversation(ledger, limits=dataclasses.replace(LIMITS, max_norm=norm * 0.999))
    assert "norm" in tight.upload(device, offer, data).reason
    wide = Conversation(ledger, limits=dataclasses.replace(LIMITS, max_norm=norm * 1.001))
    assert isinstance(wide.upload(device, offer, data), Done)
    assert ledger.updates()[0].norm == pytest.approx(norm, rel=1e-12)


def test_mutated_and_random_messages_change_nothing_and_a_good_update_still_counts(
    server, ledger, device
):
    rng = random.Random(0)
    offer, data = device.update(ledger)
    good = device.seal(offer)
    for _ in range(300):
        message = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            message[rng.randrange(len(message))] = rng.randrange(256)
        if bytes(message) != good:
            server.send(MSG, bytes(message))
        server.send(rng.choice([MSG, CHUNK]), rng.randbytes(rng.randint(0, 400)))
    assert server.answers() == []
    assert ledger.updates() == []
    assert server.handler.letters.count >= 590
    assert not any("internal error" in reason for reason in server.reasons())
    assert isinstance(server.upload(device, offer, data), Done)


def test_deep_and_huge_json_is_refused(server, device):
    for payload in (b"[" * 30_000, b'{"a":' * 5000, b'{"type":"offer","round":' + b"9" * 9000):
        assert server.send(MSG, seal(payload, device.key)) == []
    assert not any("internal error" in reason for reason in server.reasons())
