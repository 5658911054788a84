"""A child process that runs an installed model, so that a bad one can only hurt the child.

    python -m edge_sdk.agent.trial device.toml A reference    compare with the reference outputs
    python -m edge_sdk.agent.trial device.toml A local        accuracy on the device's own images

Prints one JSON object: what was measured, or `{"error": reason}`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_sdk.errors import EdgeError, ReleaseError

TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What the child measured; a field is None where the kind of trial does not give it."""

    max_abs_diff: float | None = None
    local_accuracy: float | None = None
    inference_ms: float | None = None


def run_trial(config: Path, slot: str, kind: Literal["reference", "local"]) -> TrialResult:
    """Run one trial in a child; raises `ReleaseError` with the reason if it fails or dies."""
    command = [sys.executable, "-m", "edge_sdk.agent.trial", str(config), slot, kind]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"the trial inference did not end within {TIMEOUT_S} s") from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        if "error" in answer:
            raise ReleaseError(str(answer["error"]))
        return TrialResult(**answer)
    except (ValueError, IndexError, TypeError) as error:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ReleaseError(
            f"the trial inference died with exit status {done.returncode}: {last[0][:300]}"
        ) from error


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
