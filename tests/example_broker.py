"""The example's certificates and mosquitto.conf, moved to a test's own folder and a free port."""

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from server_toolkit.broker import find_mosquitto

EXAMPLE = Path(__file__).parents[1] / "examples" / "raspberry_pi"
PLUGINS = sorted(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"))
MISSING = find_mosquitto() is None or not PLUGINS
REASON = "mosquitto with its dynamic-security plugin is not installed"


def run_script(name, *arguments, code=0):
    """Run a script of the example's broker folder and return its output."""
    command = [sys.executable, str(EXAMPLE / "mosquitto" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def make_certificates(directory, *devices):
    """An authority, and certificates for the broker on loopback, server, admin and devices."""
    where = ("--directory", directory)
    run_script("make_certificates.py", "ca", *where)
    run_script(
        "make_certificates.py", "broker", "--host", "127.0.0.1", "--host", "localhost", *where
    )
    run_script("make_certificates.py", "server", *where)
    run_script("make_certificates.py", "admin", *where)
    if devices:
        run_script("make_certificates.py", "device", *devices, *where)


def broker_access(port, certificates, *arguments, code=0):
    """Run broker_access.py as the admin."""
    options = ("--port", port, "--ca", certificates / "ca.crt")
    options += ("--certificate", certificates / "admin.crt")
    options += ("--key", certificates / "admin-tls.key")
    return run_script("broker_access.py", *arguments, *options, code=code)


@contextmanager
def example_broker(directory, certificates):
    """Mosquitto with the example's configuration; gives the port and the process."""
    directory.mkdir()
    shutil.copy(EXAMPLE / "mosquitto" / "dynamic-security.json", directory)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (EXAMPLE / "mosquitto" / "mosquitto.conf").read_text()
    for old, new in (
        ("listener 8883", f"listener {port} 127.0.0.1"),
        ("/etc/mosquitto/trajsyn/", f"{certificates}/"),
        ("/var/lib/mosquitto/", f"{directory}/"),
        ("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so", str(PLUGINS[0])),
    ):
        assert old in text
        text = text.replace(old, new)
    assert not re.search(r"^\w+ /(etc|var)/", text, re.MULTILINE)
    user = pwd.getpwuid(os.geteuid()).pw_name  # as root it would change to a user without rights
    text += f"\nuser {user}\npersistence true\npersistence_location {directory}/\n"
    (directory / "mosquitto.conf").write_text(text + "log_dest stderr\nlog_type all\n")
    with (directory / "mosquitto.log").open("ab") as log:
        command = [find_mosquitto(), "-c", str(directory / "mosquitto.conf")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while True:
            said = (directory / "mosquitto.log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port, process
    finally:
        process.terminate()
        process.wait(10)
