"""What examples/raspberry_pi tells people to use is valid and does what it says."""

import configparser
import os
import re
import select
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edge_sdk.agent.config import load_config
from edge_sdk.agent.slots import fill_slot, slot_directory
from edge_sdk.agent.store import Store
from edge_sdk.cli import build_parser
from edge_sdk.inference import active_version
from edge_sdk.mqtt import tls_context
from edge_sdk.protocol.messages import encode_message
from edge_sdk.protocol.signing import create_key, load_private_key, load_public_key, seal
from tests.edge_sdk.agent.conftest import FakeServer, make_release
from tests.example_broker import (
    EXAMPLE,
    MISSING,
    REASON,
    broker_access,
    example_broker,
    make_certificates,
)


@pytest.fixture
def device(tmp_path):
    """A directory with the example's device.toml, and every file that it names."""
    directory = tmp_path / "device"
    directory.mkdir()
    shutil.copy(EXAMPLE / "device.toml", directory)
    (directory / "images" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(directory / "images" / "cat" / "1.png")
    create_key(directory / "device.key")
    make_certificates(tmp_path / "ca", "cam-01")
    for name, target in (
        ("ca.crt", "ca.crt"),
        ("cam-01.crt", "device.crt"),
        ("cam-01-tls.key", "device-tls.key"),
    ):
        shutil.copy(tmp_path / "ca" / name, directory / target)
    return directory


@pytest.fixture
def install(tmp_path, device):
    """Make a release the active one, as the agent does; `sign` -1 turns its answers around."""
    server = FakeServer(tmp_path / "server")
    shutil.copy(tmp_path / "server" / "server.pub", device)
    store = Store(device / "state")

    def make_active(version, slot, sign):
        release = make_release(server, version, sign=sign)
        fill_slot(
            slot_directory(device / "state", slot),
            envelope=seal(encode_message(release), server.key),
            precision="int8",
            model=server.blobs[release.int8.blob.sha256][0],
            reference=server.blobs[release.reference.sha256][0],
        )
        store.put(active_slot=slot, active_version=version)

    yield make_active
    store.close()


def application(device, frame, *options):
    return [sys.executable, EXAMPLE / "use_the_model.py", device / "device.toml", frame, *options]


def bright_left(path):
    """Class 1 for a model of `make_release` with sign 1, class 0 with sign -1."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4] = 200
    draft = path.with_name("draft.png")
    Image.fromarray(pixels).save(draft)
    draft.rename(path)  # or the application may read half a picture


def test_device_toml_loads_and_every_file_it_names_is_usable(tmp_path, device):
    create_key(tmp_path / "server.key")
    shutil.copy(tmp_path / "server.pub", device)
    config = load_config(device / "device.toml")
    settings = config.settings
    load_private_key(config.resolve(settings.private_key))
    load_public_key(config.resolve(settings.server_public_key))
    assert config.resolve(settings.data.path).is_dir()
    context = tls_context(settings.broker)
    assert context.check_hostname
    assert context.cert_store_stats()["x509_ca"] == 1


def test_the_shell_script_is_valid_and_refuses_what_is_no_wheel(tmp_path):
    script = EXAMPLE / "install.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    other = tmp_path / "notes.txt"
    other.touch()
    for arguments in ((), ("missing.whl",), (other,)):
        done = subprocess.run([script, *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_the_unit_starts_a_command_that_exists_as_its_own_user():
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str
    unit.read(EXAMPLE / "trajsyn-agent.service")
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    options = build_parser().parse_args(arguments)
    assert options.run.__module__ == "edge_sdk.commands.agent"

    script = (EXAMPLE / "install.sh").read_text()
    root, state = (
        re.search(rf"^{name}=(\S+)$", script, re.MULTILINE)[1] for name in ("ROOT", "STATE")
    )
    assert program == f"{root}/venv/bin/edge-sdk"
    assert state == f"/var/lib/{service['StateDirectory']}"
    assert options.config.is_relative_to(state)
    assert 'useradd --system --home-dir "$STATE" --no-create-home' in script
    assert service["User"] == "trajsyn"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path):
    unit = tmp_path / "trajsyn-agent.service"
    text = (EXAMPLE / "trajsyn-agent.service").read_text()
    unit.write_text(text.replace("/opt/trajsyn/venv/bin/edge-sdk", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    # Debian 12's systemd says that it ignores the two keys for longer waits.
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    newer = ("RestartSteps", "RestartMaxDelaySec")
    assert [line for line in said if not any(key in line for key in newer)] == []


def test_the_application_classifies_a_frame(tmp_path, device, install):
    frame = tmp_path / "frame.png"
    bright_left(frame)
    done = subprocess.run(application(device, frame), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no release is installed" in done.stderr
    install(3, "A", 1)
    done = subprocess.run(application(device, frame), capture_output=True, text=True)
    assert done.stdout == "class 1 (release 3)\n", done.stderr


def test_the_application_changes_to_a_new_release_while_it_runs(tmp_path, device, install):
    frame = tmp_path / "frame.png"
    bright_left(frame)
    install(1, "A", 1)
    command = application(device, frame, "--watch")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def next_line():
            ready, _, _ = select.select([process.stdout], [], [], 30)
            assert ready, "the application says nothing"
            return process.stdout.readline()

        try:
            assert next_line() == "class 1 (release 1)\n"
            install(2, "B", -1)
            assert active_version(load_config(device / "device.toml")) == 2
            bright_left(frame)
            assert next_line() == "class 0 (release 2)\n"
            install(3, "A", 1)
            bright_left(frame)
            assert next_line() == "class 1 (release 3)\n"
        finally:
            process.terminate()


@pytest.mark.skipif(MISSING, reason=REASON)
def test_mosquitto_takes_the_configuration_and_the_access_file(tmp_path):
    certificates = tmp_path / "certificates"
    make_certificates(certificates)
    with example_broker(tmp_path / "broker", certificates) as (port, process):
        assert broker_access(port, certificates, "list").split() == ["admin", "server"]
        assert broker_access(port, certificates, "add", "cam-01") == "add: cam-01\n"
        assert "is no device id" in broker_access(port, certificates, "add", "a/b", code=2)
        assert process.poll() is None
    log = (tmp_path / "broker" / "mosquitto.log").read_text()
    assert "Error" not in log
    # The rights are kept: a broker that starts again knows its devices.
    assert '"cam-01"' in (tmp_path / "broker" / "dynamic-security.json").read_text()
