"""MQTT topics: one branch a device, one for all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edge_sdk.errors import ProtocolError

ROOT = "fl/v1"
TASK = f"{ROOT}/all/task"
RELEASE = f"{ROOT}/all/release"
ALL_UPLINKS = f"{ROOT}/+/up/+"

# No MQTT wildcard or separator can be part of an id, and "all" cannot be a device.
DEVICE_ID = re.compile(r"(?!all$)[a-z0-9](?:[a-z0-9-]{1,38})[a-z0-9]")

Channel = Literal["msg", "chunk"]


@dataclass(frozen=True)
class Uplink:
    """Where a device's message came in: its id and which of its two channels."""

    device: str
    channel: Channel


def check_device_id(device: str) -> str:
    """Return `device` unchanged; raises `ProtocolError` unless it is 3-40 of a-z, 0-9 and '-'."""
    if not DEVICE_ID.fullmatch(device):
        raise ProtocolError(
            f"{device!r} is no device id: use 3 to 40 characters of a-z, 0-9 and '-', "
            "beginning and ending with a letter or digit"
        )
    return device


def uplink(device: str, channel: Channel) -> str:
    """Return the topic on which `device` publishes."""
    return f"{ROOT}/{check_device_id(device)}/up/{channel}"


def downlink(device: str, channel: Channel) -> str:
    """Return the topic on which the server publishes to `device`."""
    return f"{ROOT}/{check_device_id(device)}/dn/{channel}"


def parse_uplink(topic: str) -> Uplink:
    """Return who published on `topic`; raises `ProtocolError` for any other topic."""
    parts = topic.split("/")
    if len(parts) != 5 or parts[:2] != ROOT.split("/") or parts[3] != "up":
        raise ProtocolError(f"{topic[:120]!r} is not an uplink topic")
    check_device_id(parts[2])
    if parts[4] == "msg":
        return Uplink(parts[2], "msg")
    if parts[4] == "chunk":
        return Uplink(parts[2], "chunk")
    raise ProtocolError(f"{topic[:120]!r} is not an uplink topic")
