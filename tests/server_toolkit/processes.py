"""A fleet directory and `server-toolkit` processes, for the tests of the commands."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

from edge_sdk.protocol.signing import create_key
from models.description import to_toml
from server_toolkit.commands.template import SERVER_TOML
from tests.server_toolkit.fleet import SPEC, new_ledger


def model_section(**changes):
    return to_toml(dataclasses.replace(SPEC, **changes))


def server_toml(**changes):
    values = {
        "name": '"run-1"',
        "rounds": 2,
        "model": model_section(),
        "host": '"127.0.0.1"',
        "port": 1,
        "micro_batch": 4,
        "precision": '"fp32"',
        "seed": 0,
    }
    return SERVER_TOML.format(**(values | changes))


def fleet_directory(directory: Path, *, port=1, rounds=2):
    """Make what `init` makes, without the seconds that exporting a program takes."""
    ledger = new_ledger(directory)
    (directory / "keys").mkdir()
    create_key(directory / "keys" / "server.key")
    text = server_toml(port=port, rounds=rounds).replace("enabled = true", "enabled = false")
    (directory / "server.toml").write_text(text)
    return ledger


def start(*arguments, **options):
    command = [sys.executable, "-m", "server_toolkit.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run(*arguments, code=0):
    """Run a command to its end and return its output; its exit code must be `code`."""
    process = start(*arguments)
    output, errors = process.communicate(timeout=120)
    text = output.decode() + errors.decode()
    assert process.returncode == code, text
    assert "Traceback" not in text
    return output.decode() if code == 0 else text


def until(condition, timeout_s=60.0):
    """Wait for a true value and return it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise TimeoutError(f"nothing came in {timeout_s} s")


def serve_state(directory):
    file = directory / "serve.json"
    return json.loads(file.read_text()) if file.exists() else {}
