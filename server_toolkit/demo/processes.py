"""Child processes of the demo: each with its log file, all ended with it, in the right order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from server_toolkit.errors import ServerError

STOP_TIMEOUT_S = 15


class Processes:
    """Starts `python -m MODULE ...` children; leaving the `with` block ends those still running."""

    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._arguments: dict[str, Sequence[str | Path]] = {}
        log_directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._running.values()):
            if process.poll() is None:
                process.terminate()
        for process in self._running.values():
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, arguments: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """Start a child in the background; its output goes to `NAME.log`."""
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=one_thread_environment(),
            )
        self._running[name], self._arguments[name] = process, arguments
        return process

    def run(self, name: str, arguments: Sequence[str | Path]) -> None:
        """Run a child to its end; raises `ServerError` with its last words if it fails."""
        process = self.start(name, arguments)
        process.wait()
        self.check(name)

    def restart_if_killed(self, name: str) -> bool:
        """Start a child again that a signal ended, as systemd would, and say whether it was so."""
        code = self._running[name].poll()
        if code is None or code >= 0:
            return False
        self.start(name, self._arguments[name])
        return True

    def check(self, name: str) -> bool:
        """Say whether a child is still running; raises `ServerError` if it failed."""
        code = self._running[name].poll()
        if code:
            words = self.log(name).read_text(errors="replace").strip().splitlines()[-6:]
            raise ServerError(
                f"{name} ended with exit code {code}; the end of {self.log(name)}:\n  "
                + "\n  ".join(words)
            )
        return code is None

    def log(self, name: str) -> Path:
        """Return the log file of a child."""
        return self._log_directory / f"{name}.log"


def one_thread_environment() -> dict[str, str]:
    """Return the environment with one OpenMP thread a process: many share few cores here."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
