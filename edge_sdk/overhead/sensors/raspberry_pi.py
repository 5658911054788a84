"""Raspberry Pi 5: the power rails that its PMIC measures, and the firmware's throttling flags."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_sdk.overhead.sensors.source import Missing, RunCommand, SensorError, run_command

NAME = "Raspberry Pi 5 PMIC"
# `VDD_CORE_A current(7)=1.11625000A` and `VDD_CORE_V volt(15)=0.74944980V`
_LINE = re.compile(r"\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=(-?\d+(?:\.\d+)?)[AV]\s*")
THROTTLE_BITS = {
    0: "under-voltage",
    1: "ARM frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
SINCE_BOOT = 16  # the same flags, shifted: it happened since the last boot


def parse_rails(text: str) -> dict[str, float]:
    """Return watts by rail of `vcgencmd pmic_read_adc`: current times voltage where both are given.

    EXT5V and BATT have a voltage only and are left out. Raises `SensorError` if no rail is there.
    """
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            found.setdefault(match[1], {})[match[2]] = float(match[3])
    rails = {name: v["A"] * v["V"] for name, v in found.items() if len(v) == 2}
    if not rails:
        raise SensorError(f"vcgencmd pmic_read_adc gave no rail: {text.strip()[:120]!r}")
    return rails


@dataclass(frozen=True)
class Throttling:
    """Which limits act now, and which did since the last boot."""

    now: tuple[str, ...]
    since_boot: tuple[str, ...]


def parse_throttled(text: str) -> Throttling:
    """Read `throttled=0x50000` of `vcgencmd get_throttled`; raises `SensorError`."""
    match = re.fullmatch(r"\s*throttled=(0x[0-9a-fA-F]+)\s*", text)
    if match is None:
        raise SensorError(f"vcgencmd get_throttled gave {text.strip()[:80]!r}")
    bits = int(match[1], 16)
    return Throttling(
        tuple(name for bit, name in THROTTLE_BITS.items() if bits >> bit & 1),
        tuple(name for bit, name in THROTTLE_BITS.items() if bits >> (bit + SINCE_BOOT) & 1),
    )


class PmicRails:
    """The sum of volts times amperes over the PMIC's rails."""

    name = NAME
    covers = (
        "the sum over the rails that the PMIC measures (CPU core, memory, 3.3 V, 1.8 V, 1.1 V, "
        "HDMI, wireless); not on them: USB devices, fans and HATs on 5 V, and the PMIC's own "
        "conversion losses, so a wall meter shows more"
    )
    is_counter = False
    interval_s = 0.2  # every reading starts a process

    def __init__(self, run: RunCommand = run_command) -> None:
        self._run = run

    def read(self) -> float:
        """Return watts."""
        return sum(parse_rails(self._run(["vcgencmd", "pmic_read_adc"])).values())


def find_pmic(run: RunCommand = run_command) -> PmicRails | Missing:
    """Return the reader if the firmware answers with rails (only a Raspberry Pi 5 has them)."""
    source = PmicRails(run)
    try:
        source.read()
    except SensorError as error:
        remedy = "only a Raspberry Pi 5 has it; there, run as a user of the group video"
        return Missing(NAME, str(error), remedy)
    return source


def read_throttling(run: RunCommand = run_command) -> Throttling:
    """Return the firmware's throttling flags; raises `SensorError` where there is no firmware."""
    return parse_throttled(run(["vcgencmd", "get_throttled"]))
