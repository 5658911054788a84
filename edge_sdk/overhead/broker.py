"""A mosquitto of the benchmark's own on loopback, where it is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sdk.errors import EdgeError
from edge_sdk.mqtt import BrokerSettings

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0

CONFIGURATION = """\
listener {port} {host}
allow_anonymous true
user {user}
persistence false
max_packet_size 131072
log_dest stderr
log_type error
"""


def find_mosquitto() -> str | None:
    """Return the path of mosquitto, which Debian keeps outside of a user's PATH."""
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextmanager
def loopback_broker(mosquitto: str, directory: Path) -> Iterator[BrokerSettings]:
    """Run a broker on a free port while the block runs; raises `EdgeError` if it does not start."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    file = directory / "mosquitto.conf"
    user = pwd.getpwuid(os.geteuid()).pw_name  # as root, it would change to a user of its own
    file.write_text(CONFIGURATION.format(port=port, host=HOST, user=user), encoding="utf-8")
    # A session of its own: Ctrl-C is for us, and we end it when we are done with it.
    process = subprocess.Popen(
        [mosquitto, "-c", str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait(process, port)
        yield BrokerSettings(host=HOST, port=port)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise EdgeError("mosquitto is installed but did not start; use --broker or --no-broker")
