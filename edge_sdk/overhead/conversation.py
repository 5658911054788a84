"""Server and device of one benchmark run: their files, and talking over a real broker."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.mqtt import BrokerSettings, Connected, Disconnected, MqttLink, Received
from edge_sdk.overhead.server import BenchServer, Send
from edge_sdk.protocol import topics
from edge_sdk.protocol.messages import Release, Task
from edge_sdk.protocol.schema import decode
from edge_sdk.protocol.signing import load_private_key, load_public_key
from edge_sdk.protocol.updates import decode_weights
from models import ModelSpec, layout_of

DEVICE = "bench-device"
CONNECT_TIMEOUT_S = 15.0
RETAINED_WAIT_S = 0.5


def task_of(setup: dict[str, Any]) -> tuple[Task, Path]:
    """Return the first round's task and the directory with its files."""
    return decode(Task, setup["task"]), Path(setup["directory"])


def make_server(setup: dict[str, Any], send: Send) -> BenchServer:
    """Return the server that `setup` (JSON) describes."""
    task, directory = task_of(setup)
    layout = layout_of(ModelSpec.from_dict(setup["spec"]))
    release = None if setup["release"] is None else decode(Release, setup["release"])
    return BenchServer(
        directory,
        key=load_private_key(Path(setup["key"])),
        device=DEVICE,
        device_key=load_public_key(Path(setup["device_key"])),
        layout=layout,
        base=decode_weights((directory / task.base.sha256).read_bytes(), layout).astype(np.float32),
        task=task,
        rounds=setup["rounds"],
        release=release,
        send=send,
    )


def server_facts(server: BenchServer) -> dict[str, Any]:
    """Return what the server saw, as JSON-ready values."""
    report = server.report
    return {
        "uploads": [asdict(u) for u in server.uploads],
        "bytes_up": server.bytes_up,
        "bytes_down": server.bytes_down,
        "release": None
        if report is None
        else {
            "verdict": report.verdict,
            "reason": report.reason,
            "announced_s": server.release_announced_s,
            "judged_s": server.release_judged_s,
            "inference_ms": report.inference_ms,
        },
    }


def converse(
    setup: dict[str, Any],
    broker: BrokerSettings,
    *,
    check: Callable[[], None],
    timeout_s: float,
) -> dict[str, Any]:
    """Serve one device over a broker until all is done, and return what was seen.

    `check` is called often and may raise. Raises `ConfigError` where the broker cannot be used,
    `EdgeError` after `timeout_s` without an end.
    """
    events: queue.Queue[Any] = queue.Queue(1000)
    link = MqttLink(
        broker,
        client_id="bench-server",
        subscriptions=(topics.uplink(DEVICE, "msg"), topics.uplink(DEVICE, "chunk")),
        events=events,
    )

    def send(topic: str, payload: bytes) -> None:
        link.publish(topic, payload)

    server = make_server(setup, send)
    link.start()
    deadline_s = time.monotonic() + timeout_s
    try:
        while not server.finished:
            check()
            if time.monotonic() > deadline_s:
                raise EdgeError(f"the device did not finish its rounds within {timeout_s:.0f} s")
            link.tick()
            server.on_tick()
            with contextlib.suppress(queue.Empty):
                match events.get(timeout=0.02):
                    case Received(topic, payload):
                        server.on_message(topic, payload)
                    case Disconnected(reason):
                        raise ConfigError(f"the broker cannot be used: {reason}")
    finally:
        link.stop()
    return server_facts(server)


def check_broker(broker: BrokerSettings) -> None:
    """Raise `ConfigError` if the broker is out of reach, or if a fleet's tasks are on it."""
    events: queue.Queue[Any] = queue.Queue(1000)
    link = MqttLink(
        broker, client_id="bench-check", subscriptions=(topics.TASK, topics.RELEASE), events=events
    )
    link.start()
    deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
    try:
        while True:
            try:
                event = events.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty as error:
                if link.connected:
                    return
                where = f"{broker.host}:{broker.port}"
                raise ConfigError(f"no MQTT broker answers at {where}") from error
            match event:
                case Connected():
                    deadline_s = time.monotonic() + RETAINED_WAIT_S
                case Received():
                    raise ConfigError(
                        f"a fleet lives on the broker {broker.host}:{broker.port}; the bench sends "
                        "tasks of its own and must not disturb it: give --broker another one"
                    )
                case Disconnected(reason):
                    raise ConfigError(f"the broker cannot be used: {reason}")
    finally:
        link.stop()
