"""Child processes of the benchmark: each on a leash, none left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_sdk.errors import EdgeError

END_TIMEOUT_S = 20.0


class ArmError(EdgeError):
    """An arm of the benchmark could not be measured; the others go on."""


class Child:
    """`edge_sdk.overhead.child` with these instructions; a context manager that ends it.

    It and what it starts are a process group of their own, so that Ctrl-C reaches only us and we
    can end all of them.
    """

    def __init__(self, instructions: dict[str, Any], directory: Path, *, threads: int) -> None:
        self._result = directory / "result.json"
        self._log = directory / "messages.txt"
        file = directory / "instructions.json"
        text = json.dumps(instructions | {"result": str(self._result)})
        file.write_text(text, encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_sdk.overhead.child", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.started_s = time.monotonic()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def wait_for_line(self) -> None:
        """Wait for the child's first line of output; raises `ArmError` if it ends without one."""
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            self.finish()
            raise ArmError("the process ended before it had begun")

    def check(self) -> None:
        """Raise `ArmError` if the child has ended."""
        if self.process.poll() is not None:
            self.finish()
            raise ArmError("the process ended before its work was done")

    def let_go(self) -> None:
        """Cut the leash: the child is to end by itself."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def finish(self, *, timeout_s: float = END_TIMEOUT_S) -> dict[str, Any]:
        """Wait for the end and return the result; raises `ArmError` with the child's own words."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ArmError(f"the process did not end within {timeout_s:.0f} s") from error
        try:
            result: dict[str, Any] = json.loads(self._result.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            said = self._log.read_text(errors="replace").strip().splitlines()
            fatal = [line for line in said if line.startswith("Fatal")] or said[-1:]
            raise ArmError(f"the process ended with status {code}: {' '.join(fatal)}") from error
        if "error" in result:
            raise ArmError(result["error"])
        return result
