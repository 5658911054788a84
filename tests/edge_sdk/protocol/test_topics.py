"""Topics: no id reaches another device's branch, and only uplinks parse as uplinks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol import topics
from edge_sdk.protocol.topics import Uplink, check_device_id, downlink, parse_uplink, uplink

GOOD_IDS = ["abc", "pi-7", "0a0", "a--b", "all-1", "ball", "a" * 40]
BAD_IDS = [
    "",
    "ab",
    "a" * 41,
    "all",
    "+",
    "#",
    "a+b",
    "a#b",
    "a/b",
    "$share",
    "-abc",
    "abc-",
    "Abc",
    "a b",
    "a_b",
    "abc\n",
    "\nabc",
    "abc\0",
    "all\n",
    "äbc",
    "aбc",  # Cyrillic
    "٣٣٣",  # digits to `\d`, not to us
    "ａｂｃ",  # full width
]


@pytest.mark.parametrize("device", GOOD_IDS)
def test_a_good_id_survives_the_round_trip_through_a_topic(device):
    assert check_device_id(device) == device
    assert parse_uplink(uplink(device, "msg")) == Uplink(device, "msg")
    assert parse_uplink(uplink(device, "chunk")) == Uplink(device, "chunk")


@pytest.mark.parametrize("device", BAD_IDS)
def test_a_bad_id_is_refused_everywhere(device):
    for attempt in (
        lambda: check_device_id(device),
        lambda: uplink(device, "msg"),
        lambda: downlink(device, "msg"),
        lambda: parse_uplink(f"fl/v1/{device}/up/msg"),
    ):
        with pytest.raises(ProtocolError):
            attempt()


def test_topics_are_the_documented_ones():
    assert uplink("pi-7", "msg") == "fl/v1/pi-7/up/msg"
    assert downlink("pi-7", "chunk") == "fl/v1/pi-7/dn/chunk"
    assert topics.TASK == "fl/v1/all/task"
    assert topics.RELEASE == "fl/v1/all/release"
    assert topics.ALL_UPLINKS == "fl/v1/+/up/+"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fl/v1/pi-7/dn/msg",
        "fl/v1/pi-7/up",
        "fl/v1/pi-7/up/",
        "fl/v1/pi-7/up/msg/",
        "/fl/v1/pi-7/up/msg",
        "fl/v2/pi-7/up/msg",
        "fl/v1/pi-7/up/Msg",
        "fl/v1/pi-7/up/msg\n",
        "fl/v1/all/up/msg",
        "fl/v1/+/up/msg",
        "fl/v1/all/task",
        "$SYS/broker/uptime",
    ],
)
def test_any_other_topic_is_no_uplink(topic):
    with pytest.raises(ProtocolError):
        parse_uplink(topic)


@given(st.text(max_size=60))
def test_whatever_is_accepted_is_one_plain_level(text):
    try:
        device = check_device_id(text)
    except ProtocolError:
        return
    assert device == text
    assert device.isascii()
    assert 3 <= len(device) <= 40
    assert not set(device) & set("+#/$ \n\0")
