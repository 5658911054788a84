"""A broker for trying things out: mosquitto if it is installed, else amqtt, on loopback only."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Literal

from server_toolkit.errors import ConfigError, ServerError

log = logging.getLogger(__name__)

BrokerKind = Literal["mosquitto", "amqtt"]
HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0

# Packet limit above one chunk; message_size_limit stays off because mosquitto drops too large
# messages silently with it. The queue limits bound memory; what they drop is asked for again.
MOSQUITTO = """\
listener {port} {host}
allow_anonymous true
user {user}
persistence true
persistence_location {directory}/
autosave_interval 30
max_packet_size 131072
message_size_limit 0
max_inflight_messages 16
max_queued_messages 5000
max_queued_bytes 67108864
log_dest stderr
log_type warning
log_type error
"""
AMQTT = """\
listeners:
  default:
    type: tcp
    bind: {host}:{port}
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
"""


class Broker:
    """A running broker process; a context manager that ends it."""

    def __init__(
        self, *, kind: BrokerKind, port: int, process: subprocess.Popen[bytes], log_file: Path
    ) -> None:
        self.kind = kind
        self.host = HOST
        self.port = port
        self.process = process
        self.log_file = log_file

    def stop(self) -> None:
        """End the process; with mosquitto, retained messages and queues are saved."""
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def find_mosquitto() -> str | None:
    """Return the path of mosquitto, which Debian keeps outside of a user's PATH."""
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def start_broker(
    directory: Path, *, port: int | None = None, kind: BrokerKind | None = None
) -> Broker:
    """Start a broker on loopback that keeps its files in `directory`; returns once it listens.

    `port` None is a free one; `kind` None is mosquitto where it is installed, else amqtt. Raises
    `ConfigError` if the kind is not installed, `ServerError` if it does not start.
    """
    mosquitto = find_mosquitto()
    kind = kind or ("mosquitto" if mosquitto else "amqtt")
    port = _free_port(port)
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if kind == "mosquitto":
        if mosquitto is None:
            raise ConfigError("mosquitto is not installed ('apt install mosquitto'), or use amqtt")
        config = directory / "mosquitto.conf"
        user = pwd.getpwuid(os.geteuid()).pw_name  # or, as root, it changes to a user of its own
        text = MOSQUITTO.format(host=HOST, port=port, user=user, directory=directory)
        command = [mosquitto, "-c", str(config)]
    else:
        log.warning(
            "the broker is amqtt: for trying out on this machine only, it is no security boundary"
        )
        config = directory / "amqtt.yaml"
        text = AMQTT.format(host=HOST, port=port)
        command = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(config)]
    config.write_text(text)
    log_file = directory / f"{kind}.log"
    with log_file.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=directory)
    broker = Broker(kind=kind, port=port, process=process, log_file=log_file)
    try:
        _wait_until_listening(broker)
    except BaseException:
        broker.stop()
        raise
    log.info("%s listens on %s:%d", kind, HOST, port)
    return broker


def _free_port(wanted: int | None) -> int:
    """Return `wanted` or any free port; amqtt itself would not end where its port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as error:
            raise ConfigError(
                f"port {wanted} cannot be used ({error.strerror}); choose another with --port"
            ) from error
        return int(probe.getsockname()[1])


def _wait_until_listening(broker: Broker) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if broker.process.poll() is not None:
            break
        try:
            socket.create_connection((broker.host, broker.port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise ServerError(
        f"{broker.kind} did not start on port {broker.port}; its messages are in {broker.log_file}"
    )
