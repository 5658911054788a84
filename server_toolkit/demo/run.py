"""The demo's course: set up, federate, distil and harden, release, and write down what came out."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from server_toolkit.broker import BrokerKind, start_broker
from server_toolkit.demo.digits import IMAGE_SIZE, DemoFiles, divide_digits
from server_toolkit.demo.outcome import write_outcome
from server_toolkit.demo.processes import Processes
from server_toolkit.demo.settings import (
    ARMS,
    DEVICES,
    MAIN_ARM,
    MEAN,
    ROUNDS,
    SEED,
    SERVER_TOML,
    START_WITHOUT_IMAGES,
    STD,
    WIDTH,
    set_values,
)
from server_toolkit.errors import ConfigError, ServerError
from server_toolkit.ledger import Ledger

MARKER = ".made-by-trajsyn-demo"
ROUNDS_TIMEOUT_S = 600
ARMS_TIMEOUT_S = 1800
INSTALL_TIMEOUT_S = 180
POLL_S = 0.25

SERVER = "server_toolkit.cli"
DEVICE = "edge_sdk.cli"


@dataclass(frozen=True)
class DemoPaths:
    """Where everything of one demo lies."""

    output: Path

    @property
    def fleet(self) -> Path:
        """The server's directory: ledger, proxy sets, models, releases."""
        return self.output / "fleet"

    @property
    def config(self) -> Path:
        """The server's configuration."""
        return self.fleet / "server.toml"

    def device(self, name: str) -> Path:
        """One device's directory."""
        return self.output / "devices" / name


def run_demo(output: Path, console: Console, *, broker: BrokerKind | None = None) -> None:
    """Run everything and leave it in `output`; raises `ServerError` naming the log to look at."""
    start_s = time.monotonic()
    paths = DemoPaths(output.resolve())
    _empty(paths.output)
    with Processes(paths.output / "logs") as processes, _Display(console) as display:
        display.say("dividing scikit-learn's digits: devices, server set, test images")
        files = divide_digits(paths.output / "data", list(DEVICES), seed=SEED)
        with start_broker(paths.output / "broker", kind=broker) as running:
            display.say(f"broker: {running.kind} on {running.host}:{running.port}")
            _set_up(paths, files, running.port, processes, display)
            ledger = Ledger.open(paths.fleet)
            started = [processes.start("server", [SERVER, "serve", "--config", paths.config])]
            for name in DEVICES:
                config = paths.device(name) / "device.toml"
                started.append(processes.start(name, [DEVICE, "agent", "--config", config]))
            pids = ", ".join(str(process.pid) for process in started)
            display.say(f"one server and {len(DEVICES)} device processes are running: {pids}")
            _wait_for_rounds(ledger, processes, display)
            _make_arms(paths, files, ledger, processes, display)
            _wait_for_devices(ledger, processes, display)
            time.sleep(1.0)  # the last status of every device is on its way
            ledger.close()
        display.say("all devices run the release; writing the report")
    wall_s = time.monotonic() - start_s
    write_outcome(paths.output, paths.fleet, files, console, wall_s=wall_s)


def _empty(output: Path) -> None:
    """Make the output directory, replacing only what an earlier demo made."""
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).exists():
            raise ConfigError(f"{output} is not empty and no demo made it; choose another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


def _set_up(
    paths: DemoPaths, files: DemoFiles, port: int, processes: Processes, display: _Display
) -> None:
    display.say("server-toolkit init: keys, first weights, training program checked in float64")
    processes.run(
        "server-init",
        [
            SERVER, "init", paths.fleet, "--name", "digits-demo", "--classes", "10",
            "--image-size", str(IMAGE_SIZE), "--channels", "1", "--width", str(WIDTH),
            "--mean", str(MEAN), "--std", str(STD), "--rounds", str(ROUNDS),
            "--seed", str(SEED), "--port", str(port),
        ],
    )  # fmt: skip
    data = {
        ("data", "server_set"): str(files.server_set),
        ("data", "test_set"): str(files.test),
    }
    set_values(paths.config, SERVER_TOML | data)
    display.say(f"edge-sdk init: {len(DEVICES)} devices with keys of their own, then enrolled")
    for name in DEVICES:
        directory = paths.device(name)
        processes.run(
            f"{name}-init",
            [
                DEVICE, "init", directory, "--device", name, "--port", str(port),
                "--server-key", paths.fleet / "keys" / "server.pub", "--data", files.devices,
            ],
        )  # fmt: skip
        set_values(directory / "device.toml", {("data", "partition"): str(files.partition)})
        processes.run(
            f"{name}-enrol",
            [
                SERVER, "devices", "add", "--id", name, "--config", paths.config,
                "--public-key", directory / "device.pub",
            ],
        )  # fmt: skip


def _wait_for_rounds(ledger: Ledger, processes: Processes, display: _Display) -> None:
    bar = display.bar("federated rounds", ROUNDS)
    closed = 0

    def done() -> bool:
        nonlocal closed
        newest = ledger.latest_round()
        for number in range(closed, newest):
            rows = ledger.updates(number)
            loss = sum(r.loss_last * r.samples for r in rows) / sum(r.samples for r in rows)
            size = sum(r.size_bytes for r in rows)
            display.say(
                f"round {number + 1} of {ROUNDS}: {len(rows)} updates, {size:,} bytes, "
                f"training loss {loss:.3f}"
            )
        closed = newest
        display.advance(bar, newest)
        return newest >= ROUNDS

    _wait(done, processes, display, ROUNDS_TIMEOUT_S, "the federated rounds")


def _make_arms(
    paths: DemoPaths, files: DemoFiles, ledger: Ledger, processes: Processes, display: _Display
) -> None:
    """Wait for the server's pipeline, which makes the main arm, and make the others beside it."""
    display.say(f"the server now runs its pipeline for {MAIN_ARM}; the other arms are made beside")
    bar = display.bar("arms evaluated", len(ARMS))
    failure: list[ServerError] = []

    def make_others() -> None:
        try:
            for name, arguments in _other_arms(files):
                processes.run(name, [SERVER, *arguments, "--config", paths.config])
        except ServerError as error:
            failure.append(error)

    others = threading.Thread(target=make_others, name="other-arms", daemon=True)
    others.start()
    told: set[tuple[str, str]] = set()

    def done() -> bool:
        if failure:
            raise failure[0]
        for row in ledger.artefacts():
            if (row.kind, row.name) not in told:
                told.add((row.kind, row.name))
                display.say(f"{row.name}: {_DONE[row.kind]}")
        evaluated = sum(kind == "evaluation" for kind, _ in told)
        display.advance(bar, evaluated)
        display.describe(bar, f"arms evaluated · {_last_words(paths.fleet / 'pipeline.log')}")
        return evaluated == len(ARMS) and not others.is_alive()

    _wait(done, processes, display, ARMS_TIMEOUT_S, "the arms of the comparison")


def _last_words(log_file: Path) -> str:
    """Return what a stage said last, such as "distil NAME: 150 of 300, match loss 0.4"."""
    try:
        text = log_file.read_text(errors="replace")
    except OSError:
        return ""
    said = [line.partition("INFO")[2].strip() for line in text.splitlines() if " of " in line]
    return said[-1][:60] if said else ""


_DONE = {
    "proxy": "proxy set distilled",
    "model": "model hardened",
    "evaluation": "evaluated, clean and under attack",
}


def _other_arms(files: DemoFiles) -> list[tuple[str, list[str | Path]]]:
    """Return the commands that make every arm but the undefended and the main one."""
    one_thread: list[str | Path] = ["--threads", "1"]

    def distil(name: str, *more: str) -> tuple[str, list[str | Path]]:
        return f"distill-{name}", [
            "distill",
            "--name",
            name,
            "--start",
            START_WITHOUT_IMAGES,
            *more,
            *one_thread,
        ]

    def harden(name: str, *images: str | Path) -> tuple[str, list[str | Path]]:
        return f"harden-{name}", ["harden", "--name", name, *images, *one_thread]

    def judge(name: str) -> tuple[str, list[str | Path]]:
        return f"evaluate-{name}", ["evaluate", "--name", name, *one_thread]

    return [
        distil("trajsyn_noise"),
        harden("trajsyn_noise", "--proxy", "trajsyn_noise"),
        distil("noise_only", "--iterations", "0"),
        harden("noise_only", "--proxy", "noise_only"),
        harden("server_set_only", "--images", files.server_set),
        *(judge(n) for n in ("trajsyn_noise", "noise_only", "server_set_only")),
    ]


def _wait_for_devices(ledger: Ledger, processes: Processes, display: _Display) -> None:
    bar = display.bar("devices on the release", len(DEVICES))
    told: set[int] = set()

    def done() -> bool:
        running = set()
        for row in ledger.installs():
            if row.id not in told:
                told.add(row.id)
                display.say(
                    f"{row.device}: version {row.version} {row.verdict} ({row.reason}), accuracy "
                    f"on its own images {100 * (row.local_accuracy or 0):.1f} %"
                )
            if row.verdict == "running":
                running.add(row.device)
        display.advance(bar, len(running))
        return len(running) == len(DEVICES)

    _wait(done, processes, display, INSTALL_TIMEOUT_S, "all devices to install the release")


def _wait(
    done: Callable[[], bool], processes: Processes, display: _Display, timeout_s: float, what: str
) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        for name in ("server", *DEVICES):
            if processes.restart_if_killed(name):
                display.say(f"{name} was killed; starting it again")
            if not processes.check(name):
                raise ServerError(f"{name} ended early; see {processes.log(name)}")
        if time.monotonic() > deadline:
            raise ServerError(
                f"waited {timeout_s:.0f} s for {what}; see {processes.log('server')} and the "
                "logs beside it"
            )
        time.sleep(POLL_S)


class _Display:
    """Lines that stay, and on a terminal bars that move below them."""

    def __init__(self, console: Console) -> None:
        self._start_s = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._console = console

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        self._console.print(f"[dim]{time.monotonic() - self._start_s:5.0f} s[/]  {text}")

    def bar(self, text: str, total: int) -> TaskID:
        """Add a bar."""
        return self._progress.add_task(text, total=total)

    def describe(self, bar: TaskID, text: str) -> None:
        """Change the text of a bar."""
        self._progress.update(bar, description=text)

    def advance(self, bar: TaskID, done: int) -> None:
        """Move a bar to `done`."""
        self._progress.update(bar, completed=done)
