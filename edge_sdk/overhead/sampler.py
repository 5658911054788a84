"""Watches the device in a thread while other processes work: power, temperature, clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_sdk.overhead.energy import Trace
from edge_sdk.overhead.sensors.heat import (
    Throttle,
    find_clocks,
    find_temperatures,
    read_clock_mhz,
    read_hottest_c,
)
from edge_sdk.overhead.sensors.jetson import find_ina3221
from edge_sdk.overhead.sensors.meter import Meter
from edge_sdk.overhead.sensors.rapl import find_rapl
from edge_sdk.overhead.sensors.raspberry_pi import find_pmic
from edge_sdk.overhead.sensors.source import (
    Missing,
    PowerSource,
    RunCommand,
    SensorError,
    run_command,
)
from edge_sdk.overhead.values import Value, absent, measured

SYSFS = Path("/sys")
HEAT_INTERVAL_S = 1.0


def find_power(sysfs: Path, run: RunCommand) -> tuple[PowerSource | None, list[Missing]]:
    """Return the first built-in power sensor that answers, and why the ones before it did not."""
    missing: list[Missing] = []
    finders: tuple[Callable[[], PowerSource | Missing], ...] = (
        lambda: find_pmic(run),
        lambda: find_ina3221(sysfs),
        lambda: find_rapl(sysfs),
    )
    for find in finders:
        found = find()
        if not isinstance(found, Missing):
            return found, missing
        missing.append(found)
    return None, missing


class Sampler:
    """A context manager that samples until it is left; ask it about any stretch of time since.

    The external meter, where given, is preferred to what is built in.
    """

    def __init__(
        self,
        *,
        meter_command: str | None = None,
        sysfs: Path = SYSFS,
        run: RunCommand = run_command,
    ) -> None:
        self._sysfs, self._run = sysfs, run
        self.meter: Meter | None = None
        self.power: PowerSource | None = None
        self.missing: list[Missing] = []
        if meter_command is not None:
            self.meter = Meter(meter_command)
        else:
            self.power, self.missing = find_power(sysfs, run)
        self._temperatures, self._clocks = find_temperatures(sysfs), find_clocks(sysfs)
        self._throttle: Throttle | None = None
        self.no_throttle = ""
        try:
            self._throttle = Throttle(sysfs, run)
        except SensorError as error:
            self.no_throttle = str(error)
        self._samples: list[tuple[float, float]] = []
        self._heat: list[tuple[float, float]] = []
        self._mhz: list[tuple[float, float]] = []
        self._throttled: list[tuple[float, frozenset[str]]] = []
        self._failures = 0
        self.cpu_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.meter is not None:
            self.meter.close()

    @property
    def failures(self) -> int:
        """How often a sensor could not be read or a meter printed what is no sample."""
        return self._failures + (self.meter.bad_lines if self.meter is not None else 0)

    @property
    def power_name(self) -> str | None:
        """The name of what measures power, None if nothing does."""
        source = self.meter or self.power
        return source.name if source else None

    @property
    def power_covers(self) -> str:
        """What the power sensor sees and what it does not."""
        source = self.meter or self.power
        return source.covers if source else ""

    def no_power(self, unit: str) -> Value:
        """Return the absent value for lack of a power sensor, with what each kind answered."""
        reason = "no power sensor: " + "; ".join(f"{m.name}: {m.reason}" for m in self.missing)
        remedies = [f"{m.name}: {m.remedy}" for m in self.missing if m.remedy]
        return absent(unit, reason, "; ".join([*remedies, "or give --meter-command"]))

    def trace(self) -> Trace:
        """Return all power samples so far."""
        if self.meter is not None:
            return Trace.of(self.meter.trace(), is_counter=self.meter.is_counter)
        is_counter = self.power is not None and self.power.is_counter
        return Trace.of(list(self._samples), is_counter=is_counter)

    def temperatures(self) -> list[tuple[float, float]]:
        """Return (time, degrees Celsius) so far."""
        return list(self._heat)

    def temperature(self, start_s: float, end_s: float) -> Value:
        """Return the highest temperature seen in a stretch, widened by one sampling interval."""
        if not self._temperatures:
            return absent(
                "°C",
                f"no processor temperature under {self._sysfs}/class/thermal or class/hwmon",
                "virtual machines have none; on bare metal load the driver (coretemp, k10temp)",
            )
        near = [c for t, c in self._heat if start_s - HEAT_INTERVAL_S <= t <= end_s + 0.05]
        if not near:
            return absent("°C", f"no sample within {HEAT_INTERVAL_S:.0f} s")
        return measured(max(near), "°C", f"hottest of {', '.join(self._temperatures)}")

    def clock(self, start_s: float, end_s: float) -> Value:
        """Return the median clock of the fastest core in a stretch."""
        if not self._clocks:
            return absent("MHz", "no cpufreq interface in sysfs", "virtual machines have none")
        near = sorted(m for t, m in self._mhz if start_s - HEAT_INTERVAL_S <= t <= end_s + 0.05)
        if not near:
            return absent("MHz", f"no sample within {HEAT_INTERVAL_S:.0f} s")
        return measured(near[len(near) // 2], "MHz", "cpufreq scaling_cur_freq, fastest core")

    def throttling(self, start_s: float, end_s: float) -> Value:
        """Return what throttled the processor in a stretch; "none" if nothing was seen."""
        if self._throttle is None:
            return absent(
                "text",
                self.no_throttle,
                "Raspberry Pi: install vcgencmd; virtual machines do not show it",
            )
        near = [e for t, e in self._throttled if start_s <= t <= end_s + HEAT_INTERVAL_S]
        seen = sorted(frozenset[str]().union(*near))
        return measured(", ".join(seen) or "none", "text", self._throttle.source)

    def _work(self) -> None:
        heat_due_s = 0.0
        interval_s = self.power.interval_s if self.power is not None else HEAT_INTERVAL_S
        next_s = time.monotonic()
        while not self._stop.is_set():
            now_s = time.monotonic()
            if self.power is not None:
                self._sample_power(self.power)
            if now_s >= heat_due_s:
                heat_due_s = now_s + HEAT_INTERVAL_S
                self._sample_heat(now_s)
            self.cpu_s = time.thread_time()
            next_s = max(next_s + interval_s, time.monotonic())
            self._stop.wait(next_s - time.monotonic())

    def _sample_power(self, source: PowerSource) -> None:
        before_s = time.monotonic()
        try:
            value = source.read()
        except SensorError:
            self._failures += 1
            return
        self._samples.append(((before_s + time.monotonic()) / 2, value))

    def _sample_heat(self, now_s: float) -> None:
        try:
            if self._temperatures:
                self._heat.append((now_s, read_hottest_c(self._temperatures)))
            if self._clocks:
                self._mhz.append((now_s, read_clock_mhz(self._clocks)))
            if self._throttle is not None:
                self._throttled.append((now_s, self._throttle.look()))
        except SensorError:
            self._failures += 1
