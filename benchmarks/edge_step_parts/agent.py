"""What the whole agent costs: importing it, and one running against a real broker and server."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_step_parts.processes import ChildError, peak_rss_mb, rss_mb
from models import ModelSpec
from server_toolkit.broker import start_broker
from server_toolkit.demo.processes import Processes
from server_toolkit.demo.settings import set_values
from server_toolkit.ledger import Ledger

DEVICE = "cam-01"
IMAGES = 2000
ROUNDS = 3
POLL_S, SETTLE_S, TIMEOUT_S = 0.1, 2.5, 300
MODULES = {"agent": "edge_sdk.agent.agent", "numpy": "numpy", "python": "sys"}


def import_cost(module: str, *, repeats: int) -> dict[str, float]:
    """Return CPU seconds (user and system, the least of `repeats`) and peak MB of an import."""
    code = f"import {module}\nprint(open('/proc/self/status').read())"
    cpu, memory = [], []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        line = next(line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
        memory.append(int(line.split()[1]) / 1024)
    return {"cpu_s": min(cpu), "peak_mb": max(memory)}


def import_costs(repeats: int) -> dict[str, dict[str, float]]:
    """Return what importing the agent costs, with numpy and bare Python beside it."""
    return {name: import_cost(module, repeats=repeats) for name, module in MODULES.items()}


def running_agent(spec: ModelSpec, *, batch_size: int, threads: int) -> dict[str, Any]:
    """Let a device train `ROUNDS` rounds in a real fleet; returns its memory seen from outside."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, device = folder / "fleet", folder / DEVICE
        _make_fleet(run, device, spec, batch_size=batch_size, threads=threads)
        with start_broker(folder / "broker") as broker, Processes(folder / "logs") as processes:
            set_values(run / "server.toml", {("broker", "port"): broker.port})
            set_values(device / "device.toml", {("broker", "port"): broker.port})
            agent = processes.start(
                "agent", ["edge_sdk.cli", "agent", "--config", device / "device.toml"]
            )
            _wait(processes, ["agent"], lambda: _progress(device).get("connected"))
            time.sleep(SETTLE_S)
            idle_mb = rss_mb(agent.pid)
            processes.start(
                "serve", ["server_toolkit.cli", "serve", "--config", run / "server.toml"]
            )
            ledger = Ledger.open(run)
            _wait(processes, ["agent", "serve"], lambda: ledger.latest_round() >= ROUNDS)
            ledger.close()
            time.sleep(SETTLE_S)
            return {
                "peak_mb": peak_rss_mb(agent.pid),
                "idle_connected_mb": idle_mb,
                "after_rounds_mb": rss_mb(agent.pid),
                "rounds": ROUNDS,
                "images": IMAGES,
                "batch_size": batch_size,
                "threads": threads,
                "broker": broker.kind,
            }


def _make_fleet(run: Path, device: Path, spec: ModelSpec, *, batch_size: int, threads: int) -> None:
    """Make a server's and a device's directory as the README says."""
    normal = [
        v for m, s in zip(spec.mean, spec.std, strict=True) for v in ("--mean", m, "--std", s)
    ]
    _call(
        "server_toolkit.cli", "init", run, "--name", "step", "--classes", spec.classes,
        "--image-size", spec.image_size, "--channels", spec.channels, "--width", spec.width,
        *normal, "--rounds", ROUNDS,
    )  # fmt: skip
    set_values(
        run / "server.toml",
        {
            ("training", "epochs"): 1,
            ("training", "batch_size"): batch_size,
            ("training", "momentum"): 0.9,
            ("rounds", "quorum"): 1,
            ("pipeline", "enabled"): False,
        },
    )
    rng = np.random.default_rng(0)
    shape = (IMAGES, spec.channels, spec.image_size, spec.image_size)
    images = rng.integers(256, size=shape, dtype=np.uint8)
    data = device.with_suffix(".npz")
    np.savez(data, images=images, labels=rng.integers(spec.classes, size=IMAGES))
    _call(
        "edge_sdk.cli", "init", device, "--device", DEVICE, "--data", data,
        "--server-key", run / "keys" / "server.pub", "--threads", threads,
    )  # fmt: skip
    _call(
        "server_toolkit.cli", "devices", "add", "--config", run / "server.toml", "--id", DEVICE,
        "--public-key", device / "device.pub",
    )  # fmt: skip


def _call(module: str, *arguments: Any) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ChildError(f"{module} {arguments[0]}: {done.stderr[-2000:]}")


def _wait(processes: Processes, names: list[str], until: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not until():
        for name in names:
            if not processes.check(name) or time.monotonic() > deadline:
                log = processes.log(name).read_text(errors="replace")
                raise ChildError(f"{name} ended, or nothing happened in {TIMEOUT_S} s: {log}")
        time.sleep(POLL_S)


def _progress(device: Path) -> dict[str, Any]:
    path = device / "state" / "status.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
