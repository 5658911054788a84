"""A finished run on digits, made through the ledger alone: no broker, no devices."""

import io
import logging
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sdk.protocol.signing import create_key
from edge_sdk.training.sources import load_digits
from models import ModelSpec
from models.networks import build_model, flat_parameters
from server_toolkit.cli import main
from server_toolkit.ledger import Ledger

CONFIG = """
[run]
name = "digits"
rounds = 3
[model]
channels = 1
image_size = 16
classes = 10
width = 8
mean = [0.3]
std = [0.35]
[data]
server_set = "server_set.npz"
test_set = "test.npz"
[distill]
images_per_class = 2
iterations = 40
student_steps = 2
batch_size = 20
[harden]
steps = 20
[evaluate]
epsilons = [0.1]
steps = 2
[release]
name = "digits"
max_clean_drop = 1.0
min_robust_gain = -1.0
[pipeline]
arm = "trajsyn"
"""
SPEC = ModelSpec(channels=1, image_size=16, classes=10, width=8, mean=(0.3,), std=(0.35,))


@dataclass(frozen=True)
class Fleet:
    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "server.toml"

    def edit_config(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))

    def ledger(self) -> Ledger:
        return Ledger.open(self.directory)

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start the command as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "server_toolkit.cli", *arguments, "--config", str(self.config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"OMP_NUM_THREADS": "1", "COLUMNS": "160", "PATH": "/usr/bin:/bin"},
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run the command line in this process, where torch is loaded already."""
        output = io.StringIO()
        root, handler = logging.getLogger(), logging.StreamHandler(output)
        level, sigterm = root.level, signal.getsignal(signal.SIGTERM)
        argv = ["server-toolkit", *arguments, "--config", str(self.config)]
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv)
            patch.setenv("COLUMNS", "160")
            patch.setattr(sys, "stdout", output)
            patch.setattr(sys, "stderr", output)
            with pytest.raises(SystemExit) as ended:
                main()
        root.removeHandler(handler)
        root.setLevel(level)
        signal.signal(signal.SIGTERM, sigterm)
        text = output.getvalue()
        assert ended.value.code == code, text
        return text


@pytest.fixture(scope="package")
def finished_run(tmp_path_factory) -> Path:
    """Three rounds of ordinary training, recorded as if a fleet had averaged to them."""
    directory = tmp_path_factory.mktemp("fleet")
    torch.set_num_threads(1)
    data = load_digits(16)
    x, y = torch.from_numpy(data.images[:600]), torch.from_numpy(data.labels[:600])
    model = build_model(SPEC, seed=0)
    ledger = Ledger.create(
        directory, run="digits", spec=SPEC, weights=flat_parameters(model), program=b"program"
    )
    ledger.begin_round(now_s=0.0, deadline_s=10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for number in range(3):
        for start in range(0, 600, 25):
            batch = slice(start, start + 25)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        ledger.close_round(
            number,
            flat_parameters(model),
            now_s=1.0,
            next_deadline_s=10.0 if number < 2 else None,
        )
    ledger.close()
    for name, part in (("server_set", slice(600, 700)), ("test", slice(1500, 1797))):
        np.savez(directory / f"{name}.npz", images=data.images[part], labels=data.labels[part])
    (directory / "keys").mkdir()
    create_key(directory / "keys" / "server.key")
    (directory / "server.toml").write_text(CONFIG)
    return directory


@pytest.fixture(scope="package")
def evaluated_run(finished_run, tmp_path_factory) -> Path:
    """The finished run with an evaluation of its federated model."""
    directory = tmp_path_factory.mktemp("evaluated") / "fleet"
    shutil.copytree(finished_run, directory)
    Fleet(directory).run("evaluate", "--threads", "1", "--name", "fedavg")
    return directory


@pytest.fixture
def evaluated(evaluated_run, tmp_path) -> Fleet:
    """A fresh copy of the finished run with an evaluation of its federated model."""
    directory = tmp_path / "evaluated"
    shutil.copytree(evaluated_run, directory)
    return Fleet(directory)


@pytest.fixture
def fleet(finished_run, tmp_path) -> Fleet:
    """A fresh copy of the finished run."""
    directory = tmp_path / "fleet"
    shutil.copytree(finished_run, directory)
    return Fleet(directory)
