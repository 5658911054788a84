"""An external power meter: any command that prints JSON lines, one a sample.

    {"power_w": 3.71}                     a sample, taken now
    {"t_s": 12.52, "power_w": 3.71}       taken at `t_s` seconds on the meter's own clock
    {"t_s": 12.52, "energy_j": 48.2}      a counter instead: joules since any start

The meter's clock may start anywhere; the smallest delay between a sample's time and its arrival is
taken as the way from the meter to here. Other keys are ignored.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import subprocess
import threading
import time

from edge_sdk.errors import ConfigError

FIRST_SAMPLE_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 4096


def parse_line(line: bytes) -> tuple[float | None, float, bool]:
    """Return the meter's time or None, the value, and whether it is a counter (J instead of W).

    Raises `ValueError` saying what is wrong with the line.
    """
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("a sample must be a JSON object")  # noqa: TRY004 - bad text, not a bad type
    is_counter = "energy_j" in fields
    name = "energy_j" if is_counter else "power_w"
    if name not in fields:
        raise ValueError("a sample needs power_w or energy_j")
    numbers = [fields.get("t_s"), fields[name]]
    for number in numbers:
        if number is not None and (type(number) not in (int, float) or not math.isfinite(number)):
            raise ValueError(f"{number!r} is no finite number")
    return numbers[0], float(numbers[1]), is_counter


class Meter:
    """Runs the command and collects its samples in a thread until `close`."""

    name = "external meter"

    def __init__(self, command: str) -> None:
        self.covers = f"whatever hangs on the meter behind `{command}`"
        self.is_counter = False
        self.bad_lines = 0
        self._samples: list[tuple[float | None, float, float]] = []  # meter time, arrival, value
        self._first = threading.Event()
        self._complaint = ""
        try:
            words = shlex.split(command)
            self._process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except (OSError, ValueError, IndexError) as error:
            raise ConfigError(f"--meter-command {command!r} cannot be started: {error}") from error
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()
        if not self._first.wait(FIRST_SAMPLE_TIMEOUT_S) or not self._samples:
            ended = self._process.poll()
            self.close()
            state = f"ended with status {ended}" if ended is not None else "gave no sample"
            raise ConfigError(
                f"--meter-command {command!r} {state} within {FIRST_SAMPLE_TIMEOUT_S:.0f} s"
                f"{f' ({self._complaint})' if self._complaint else ''}; it must print lines like "
                '{"power_w": 3.7}, each flushed at once'
            )

    def _collect(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(MAX_LINE_BYTES):
            arrival_s = time.monotonic()
            if not line.strip():
                continue
            try:
                meter_s, value, is_counter = parse_line(line)
            except (ValueError, OverflowError, RecursionError) as error:
                self.bad_lines += 1
                self._complaint = str(error)
                continue
            if self._samples and is_counter != self.is_counter:
                self.bad_lines += 1
                continue
            self.is_counter = is_counter
            self._samples.append((meter_s, arrival_s, value))
            self._first.set()
        self._first.set()

    def trace(self) -> list[tuple[float, float]]:
        """Return (this machine's monotonic time, value) of all samples so far, in order of time."""
        samples = list(self._samples)
        delays = [arrival - meter for meter, arrival, _ in samples if meter is not None]
        offset_s = min(delays, default=0.0)
        return sorted(
            (arrival if meter is None else meter + offset_s, value)
            for meter, arrival, value in samples
        )

    def close(self) -> None:
        """End the command."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(2)
        if self._process.stdout is not None:
            self._process.stdout.close()
