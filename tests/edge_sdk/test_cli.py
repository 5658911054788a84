"""`edge-sdk` as a user meets it: help, versions, exit codes, no traceback for a mistake."""

import json
import signal
import subprocess
import sys
import time

import pytest

from edge_sdk.protocol.signing import create_key


def edge_sdk(*arguments, cwd=None):
    command = [sys.executable, "-m", "edge_sdk.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture
def device(tmp_path):
    create_key(tmp_path / "server.key")
    done = edge_sdk(
        "init", tmp_path / "cam", "--device", "cam-01", "--server-key", tmp_path / "server.pub",
        "--data", "digits", "--port", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "cam"


def test_help_shows_first_steps_and_exit_codes():
    done = edge_sdk("--help")
    assert done.returncode == 0
    for word in ("first steps", "edge-sdk init", "exit codes", "agent", "status", "predict"):
        assert word in done.stdout


@pytest.mark.parametrize("command", ["init", "agent", "status", "predict", "export", "bench"])
def test_every_command_explains_itself(command):
    done = edge_sdk(command, "--help")
    assert done.returncode == 0
    assert "--" in done.stdout


def test_version_is_the_distribution_s():
    from importlib.metadata import version

    assert version("trajsyn") in edge_sdk("--version").stdout


def test_init_makes_a_private_key_only_the_user_can_read_and_tells_the_next_step(device):
    assert (device / "device.key").stat().st_mode & 0o777 == 0o600
    assert (device / "server.pub").read_text().startswith("ed25519:")
    again = edge_sdk("init", device, "--device", "cam-01", "--server-key", device / "server.pub",
                     "--data", "digits")  # fmt: skip
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_init_notes_that_the_images_are_not_there_yet(tmp_path):
    create_key(tmp_path / "server.key")
    done = edge_sdk(
        "init", tmp_path / "cam", "--device", "cam-01", "--server-key", tmp_path / "server.pub",
        "--data", tmp_path / "nowhere",
    )  # fmt: skip
    assert done.returncode == 0
    assert "nothing at" in done.stdout


def test_status_before_the_first_start(device):
    done = edge_sdk("status", "--config", device / "device.toml")
    assert (done.returncode, done.stdout.split()) == (0, ["agent", "never", "started"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("threads = 1", "threads = 0"), ["device.toml", "compute.threads", "from 1"]),
        (("heartbeat_s = 30", 'heartbeat_s = "x"'), ["device.toml", "heartbeat_s", "float"]),
        (("heartbeat_s = 30", "hartbeat_s = 30"), ["device.toml", "unknown field", "hartbeat_s"]),
        (('"cam-01"', '"Cam 1"'), ["device.toml", "device"]),
        (("[data]", "[data"), ["device.toml", "TOML"]),
        (('kind = "digits"', 'kind = "mnist"'), ["data.kind", "folder"]),
    ],
)
def test_a_mistake_in_the_configuration_is_named_without_a_traceback(device, change, words):
    file = device / "device.toml"
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    done = edge_sdk("agent", "--config", file)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_missing_configuration_is_one_line(tmp_path):
    done = edge_sdk("status", "--config", tmp_path / "none.toml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_predict_before_any_release_says_where_to_look(device):
    done = edge_sdk("predict", "--config", device / "device.toml", "x.npz")
    assert done.returncode == 8
    assert "edge-sdk status" in done.stderr


def test_agent_runs_without_a_broker_and_ends_cleanly(device):
    command = [sys.executable, "-m", "edge_sdk.cli", "agent", "--config", device / "device.toml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        status = {}
        while not status.get("running") and time.monotonic() < deadline:
            time.sleep(0.1)
            done = edge_sdk("status", "--json", "--config", device / "device.toml")
            status = json.loads(done.stdout)
        assert (status["state"], status["connected"]) == ("idle", False)
        second = edge_sdk("agent", "--config", device / "device.toml")
        assert second.returncode == 2
        assert "another agent" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    done = edge_sdk("status", "--config", device / "device.toml")
    assert "not running" in done.stdout


def test_a_device_id_that_is_none_is_a_wrong_option(device, tmp_path):
    key = device / "server.pub"
    for name in ("all", "../x"):
        done = edge_sdk(
            "init", tmp_path / "new", "--device", name, "--server-key", key, "--data", "digits"
        )
        assert done.returncode == 2
        assert "--device" in done.stderr
        assert not (tmp_path / "new").exists()
