"""A real broker, a real server and real device processes, small enough for every test run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from edge_sdk.training.sources import load_digits
from server_toolkit.broker import start_broker
from server_toolkit.demo.settings import set_values
from server_toolkit.ledger import Ledger

DEVICES = ("cam-01", "cam-02")


class Fleet:
    """One run in a directory; processes can be started, killed and started again."""

    def __init__(self, directory, port):
        self.directory = directory
        self.port = port
        self.config = directory / "fleet" / "server.toml"
        self._processes = {}

    def call(self, module, *arguments, check=True):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def server(self, command, *arguments, check=True):
        options = ("--config", self.config)
        return self.call("server_toolkit.cli", *command.split(), *arguments, *options, check=check)

    def device_config(self, name):
        return self.directory / name / "device.toml"

    def status(self, name):
        config = self.device_config(name)
        done = self.call("edge_sdk.cli", "status", "--json", "--config", config)
        return json.loads(done.stdout)

    def progress(self, name):
        """What the agent last wrote, without the cost of a process."""
        path = self.directory / name / "state" / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def start(self, name):
        if name == "server":
            arguments = ["server_toolkit.cli", "serve", "--config", self.config]
        else:
            arguments = ["edge_sdk.cli", "agent", "--config", self.device_config(name)]
        log = (self.directory / f"{name}.log").open("ab")
        command = [sys.executable, "-m", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        log.close()
        self._processes[name] = process
        return process

    def kill(self, name):
        self._processes[name].send_signal(signal.SIGKILL)
        self._processes[name].wait()

    def running(self, name):
        return self._processes[name].poll() is None

    def log(self, name):
        return (self.directory / f"{name}.log").read_text()

    def ledger(self):
        return Ledger.open(self.config.parent)

    def wait(self, until, what, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while not until():
            ended = [n for n, p in self._processes.items() if p.poll() is not None]
            if ended or time.monotonic() > deadline:
                what = f"{what}; ended: {ended}"
                logs = {p.name: p.read_text()[-1500:] for p in self.directory.glob("*.log")}
                pytest.fail(f"waited {timeout_s} s for {what}; {json.dumps(logs, indent=1)}")
            time.sleep(0.05)

    def end(self):
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            process.wait(20)


@pytest.fixture(scope="session")
def fleet_template(tmp_path_factory):
    """A run and its enrolled devices, made once by the commands; every test gets a copy."""
    made = Fleet(tmp_path_factory.mktemp("template"), port=1)
    made.call(
        "server_toolkit.cli", "init", made.config.parent, "--name", "small", "--classes", 10,
        "--image-size", 16, "--width", 8, "--mean", 0.3, "--std", 0.35, "--rounds", 3,
    )  # fmt: skip
    set_values(
        made.config,
        {
            ("training", "epochs"): 2,
            ("rounds", "quorum"): 2,
            ("rounds", "deadline_s"): 300,
            ("data", "server_set"): "server_set.npz",
            ("data", "test_set"): "test.npz",
            ("pipeline", "enabled"): False,
        },
    )
    digits = load_digits(16)

    def save(path, first, last):
        np.savez(path, images=digits.images[first:last], labels=digits.labels[first:last])

    save(made.config.with_name("server_set.npz"), 0, 50)
    save(made.config.with_name("test.npz"), 50, 250)
    for index, name in enumerate(DEVICES):
        save(made.directory / f"{name}.npz", 300 + 100 * index, 400 + 100 * index)
        made.call(
            "edge_sdk.cli", "init", made.directory / name, "--device", name,
            "--server-key", made.config.parent / "keys" / "server.pub",
            "--data", made.directory / f"{name}.npz",
        )  # fmt: skip
        made.server(
            "devices add", "--id", name, "--public-key", made.directory / name / "device.pub"
        )
    return made.directory


@pytest.fixture
def fleet(tmp_path, fleet_template):
    """Two enrolled devices with 100 digits each, a server, a broker; nothing started yet."""
    directory = tmp_path / "run"
    shutil.copytree(fleet_template, directory)
    with start_broker(tmp_path / "broker") as broker:
        made = Fleet(directory, broker.port)
        set_values(made.config, {("broker", "port"): broker.port})
        for name in DEVICES:
            set_values(made.device_config(name), {("broker", "port"): broker.port})
        yield made
        made.end()
