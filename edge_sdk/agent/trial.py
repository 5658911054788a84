"""A child process that runs an installed model, so that a bad one can only hurt the child.

    python -m edge_sdk.agent.trial device.toml A reference    compare with the reference outputs
    python -m edge_sdk.agent.trial device.toml A local        accuracy on the device's own images

Prints one JSON object: what was measured, or `{"error": reason}`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_sdk.errors import EdgeError, ReleaseError, TrialInterruptedError

TIMEOUT_S = 600
POLL_S = 0.2
# How others end a process: the system short of memory, a service manager, a terminal.
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What the child measured; a field is None where the kind of trial does not give it."""

    max_abs_diff: float | None = None
    local_accuracy: float | None = None
    inference_ms: float | None = None


def run_trial(
    config: Path, slot: str, kind: Literal["reference", "local"], *, stopping: threading.Event
) -> TrialResult:
    """Run one trial in a child.

    Raises `ReleaseError` with the reason if the model fails, kills the child or takes `TIMEOUT_S`;
    `TrialInterruptedError` if `stopping` is set or somebody else ended the child.
    """
    command = [sys.executable, "-m", "edge_sdk.agent.trial", str(config), slot, kind]
    code, output, messages = _run(command, stopping)
    if code < 0 and -code in FROM_OUTSIDE:
        name = signal.Signals(-code).name
        raise TrialInterruptedError(f"the trial inference was ended from outside by {name}")
    try:
        answer = json.loads(output.splitlines()[-1])
        if "error" in answer:
            raise ReleaseError(str(answer["error"]))
        return TrialResult(**answer)
    except (ValueError, IndexError, TypeError) as error:
        last = messages.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ReleaseError(
            f"the trial inference died with exit status {code}: {last[0][:300]}"
        ) from error


def _run(command: list[str], stopping: threading.Event) -> tuple[int, bytes, bytes]:
    """Return exit status, standard output and standard error of a command that may be stopped."""
    deadline_s = time.monotonic() + TIMEOUT_S
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        while True:
            try:
                output, messages = process.communicate(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                if stopping.is_set():
                    process.kill()
                    raise TrialInterruptedError("the agent stops") from None
                if time.monotonic() > deadline_s:
                    process.kill()
                    reason = f"the trial inference did not end within {TIMEOUT_S} s"
                    raise ReleaseError(reason) from None
            else:
                return process.returncode, output, messages


def main(arguments: list[str]) -> int:
    """Run as the child."""
    from edge_sdk.agent.config import load_config
    from edge_sdk.inference import InstalledModel

    config_file, slot, kind = arguments
    try:
        model = InstalledModel.open(
            load_config(Path(config_file)), slot="A" if slot == "A" else "B"
        )
        result = model.compare_with_reference() if kind == "reference" else model.judge_locally()
    except EdgeError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return 1
    sys.stdout.write(json.dumps(vars(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
