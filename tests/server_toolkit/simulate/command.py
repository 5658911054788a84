"""`server-toolkit simulate` on a few digits, in this process or in one of its own."""

import functools
import io
import logging
import os
import signal
import subprocess
import sys

import pytest

from edge_sdk.export import programs
from server_toolkit.cli import main

SMALL = (
    "--dataset", "digits", "--devices", 3, "--images", 120, "--width", 4, "--depth", 1,
    "--test-images", 40, "--threads", 1, "--device", "cpu",
)  # fmt: skip
# Exporting takes seconds, and most tests simulate the same network.
training_program = functools.lru_cache(maxsize=8)(programs.training_program)


def command(out, *options):
    return [*map(str, ("simulate", *SMALL, *options)), "--out", str(out)]


def simulate(out, *options, code=0):
    return in_process(*command(out, *options), code=code)


def in_process(*arguments, code=0):
    """Run a command in this process, where torch is loaded already, and return what it says."""
    output = io.StringIO()
    root, handler = logging.getLogger(), logging.StreamHandler(output)
    level, sigterm = root.level, signal.getsignal(signal.SIGTERM)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["server-toolkit", *map(str, arguments)])
            patch.setattr(sys, "stdout", output)
            patch.setattr(sys, "stderr", output)
            patch.setattr(programs, "training_program", training_program)
            patch.setenv("COLUMNS", "160")
            with pytest.raises(SystemExit) as ended:
                main()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        signal.signal(signal.SIGTERM, sigterm)
    text = output.getvalue()
    assert (ended.value.code or 0) == code, text
    return text


def start(out, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "server_toolkit.cli", *command(out, *options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
    )
