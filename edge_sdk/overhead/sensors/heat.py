"""Temperature, clock and throttling of the processor."""

from __future__ import annotations

import re
from pathlib import Path

from edge_sdk.overhead.sensors.raspberry_pi import read_throttling
from edge_sdk.overhead.sensors.source import (
    RunCommand,
    SensorError,
    read_integer,
    read_text,
    run_command,
)

# Pi and Jetson "cpu-thermal" (older: "CPU-therm"), Intel "x86_pkg_temp"; AMD reports in hwmon.
_PROCESSOR_ZONE = re.compile(r"cpu.*|x86_pkg_temp|soc.*|k10temp|coretemp", re.IGNORECASE)
_PROCESSOR_HWMON = ("k10temp", "coretemp", "zenpower")


def find_temperatures(sysfs: Path) -> dict[str, Path]:
    """Return the processor's temperature files (millidegrees) by name; empty if there is none."""
    found: dict[str, Path] = {}
    for zone in sorted((sysfs / "class" / "thermal").glob("thermal_zone*")):
        try:
            kind = read_text(zone / "type")
            read_integer(zone / "temp")
        except SensorError:
            continue  # Jetson's zones of units that are off answer with an error
        if _PROCESSOR_ZONE.fullmatch(kind):
            found[f"{zone.name} ({kind})"] = zone / "temp"
    if found:
        return found
    for directory in sorted((sysfs / "class" / "hwmon").glob("hwmon*")):
        try:
            kind = read_text(directory / "name")
            read_integer(directory / "temp1_input")
        except SensorError:
            continue
        if kind in _PROCESSOR_HWMON:
            found[f"{directory.name} ({kind})"] = directory / "temp1_input"
    return found


def read_hottest_c(files: dict[str, Path]) -> float:
    """Return degrees Celsius of the hottest sensor; raises `SensorError` if none answers."""
    values = []
    for path in files.values():
        try:
            values.append(read_integer(path) / 1000)
        except SensorError:
            continue
    if not values:
        raise SensorError("no temperature sensor answers")
    return max(values)


def find_clocks(sysfs: Path) -> list[Path]:
    """Return the files of the cores' present clock in kHz."""
    root = sysfs / "devices" / "system" / "cpu"
    return sorted(root.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))


def read_clock_mhz(files: list[Path]) -> float:
    """Return the fastest core's clock in MHz; raises `SensorError`."""
    if not files:
        raise SensorError("there is no cpufreq interface")
    return max(read_integer(f) for f in files) / 1000


class Throttle:
    """Which limits slow the processor down.

    Raspberry Pi: the firmware's flags. Intel: the kernel's counters of thermal events. Elsewhere:
    cooling devices of the processor that are not at rest when asked. Raises `SensorError` where
    there is none of them.
    """

    def __init__(self, sysfs: Path, run: RunCommand = run_command) -> None:
        self._run = run
        cpu = sysfs / "devices" / "system" / "cpu"
        self._counters = sorted(cpu.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
        self._cooling: list[Path] = []
        for device in sorted((sysfs / "class" / "thermal").glob("cooling_device*")):
            try:
                kind = read_text(device / "type")
                read_integer(device / "cur_state")
            except SensorError:
                continue
            if kind == "Processor" or "cpufreq" in kind or kind.startswith("cpu"):
                self._cooling.append(device / "cur_state")
        try:
            self._flags_before: frozenset[str] | None = frozenset(read_throttling(run).since_boot)
            self.source = "vcgencmd get_throttled"
        except SensorError:
            self._flags_before = None
            self.source = (
                "thermal_throttle counters in sysfs"
                if self._counters
                else "cpufreq cooling devices in sysfs"
            )
        if self._flags_before is None and not self._counters and not self._cooling:
            raise SensorError("no throttling flags, counters or cooling devices")
        self._before = self._sum()

    def _sum(self) -> int:
        return sum(read_integer(p) for p in self._counters)

    def look(self) -> frozenset[str]:
        """Return what has acted since the last look, as far as can be told; call now and then."""
        if self._flags_before is not None:
            flags = read_throttling(self._run)
            # A flag since boot that was known may have come again: only `now` tells that.
            events = frozenset(flags.now) | (frozenset(flags.since_boot) - self._flags_before)
            self._flags_before |= events
            return events
        if self._counters:
            before, self._before = self._before, self._sum()
            return frozenset({"thermal events"} if self._before > before else ())
        capped = any(read_integer(p) > 0 for p in self._cooling)
        return frozenset({"clock capped by a cooling device"} if capped else ())
