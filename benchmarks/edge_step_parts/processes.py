"""A fresh process for every measurement, pinned to its cores and looked at from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


class ChildError(Exception):
    """A measuring process failed; the text is the end of its standard error."""


def peak_rss_mb(pid: int | str = "self") -> float:
    """Return the largest resident size so far of a process (VmHWM), in MB of 2^20 bytes."""
    return _status_kb(pid, "VmHWM") / 1024


def rss_mb(pid: int | str = "self") -> float:
    """Return the resident size of a process now (VmRSS), in MB of 2^20 bytes."""
    return _status_kb(pid, "VmRSS") / 1024


def _status_kb(pid: int | str, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def ask(
    module: str,
    request: Mapping[str, Any],
    *,
    cores: list[int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a module of this package with a JSON request; returns its JSON answer and `peak_rss_mb`.

    The child keeps still after its answer, until its memory has been read from outside. Raises
    `ChildError` when it fails.
    """
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", f"{PACKAGE.name}.{module}", json.dumps(request)]
    with (
        tempfile.TemporaryFile("w+") as messages,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        answers = (line for line in child.stdout if line.startswith("{"))
        answer = next(answers, None)
        outside = peak_rss_mb(child.pid) if answer else 0.0
        child.stdin.close()
        if child.wait() or answer is None:
            messages.seek(0)
            raise ChildError(messages.read()[-2000:])
    return {**json.loads(answer), "peak_rss_mb": outside}


def answer(result: Mapping[str, Any]) -> None:
    """Give the answer of a child and wait until it has been looked at."""
    print(json.dumps(result), flush=True)
    sys.stdin.read()


@contextmanager
def busy_neighbour(core: int) -> Iterator[None]:
    """Keep one core busy with a process that never waits."""
    loop = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", loop])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()
