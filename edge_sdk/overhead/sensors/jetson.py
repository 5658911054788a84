"""Jetson: the INA3221 power monitors, through the kernel's hwmon interface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_sdk.overhead.sensors.source import Missing, SensorError, read_integer, read_text

NAME = "Jetson INA3221"
CHANNELS = (1, 2, 3)  # further files are shunt voltages and the sum of the shunts
# Rails that feed all others: where one is measured, adding the others would count them twice.
WHOLE_INPUT = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0_IN", "5V_IN")
UNCONNECTED = ("NC",)


@dataclass(frozen=True)
class Rail:
    """One channel of a monitor: its label, and the files of its power or of volts and amperes."""

    label: str
    power: Path | None
    voltage: Path
    current: Path

    def read_w(self) -> float:
        """Return watts; raises `SensorError`."""
        if self.power is not None:
            return read_integer(self.power) * 1e-6  # hwmon gives microwatts
        return read_integer(self.voltage) * 1e-3 * read_integer(self.current) * 1e-3


def find_rails(sysfs: Path) -> list[Rail]:
    """Return the connected rails of every INA3221 under `sysfs`/class/hwmon, monitors in order."""
    rails = []
    for directory in sorted((sysfs / "class" / "hwmon").glob("hwmon*")):
        try:
            if read_text(directory / "name") != "ina3221":
                continue
        except SensorError:
            continue
        for channel in CHANNELS:
            try:
                label = read_text(directory / f"in{channel}_label")
            except SensorError:
                continue
            power = directory / f"power{channel}_input"
            if label not in UNCONNECTED:
                rails.append(
                    Rail(
                        label,
                        power if power.exists() else None,
                        directory / f"in{channel}_input",
                        directory / f"curr{channel}_input",
                    )
                )
    return rails


def counted(rails: list[Rail]) -> list[Rail]:
    """Return the rails to add up: the module's whole input where it is measured, else all."""
    return [r for r in rails if r.label in WHOLE_INPUT] or rails


class Ina3221:
    """The module's input rail, or the sum of all rails where none is measured as a whole."""

    name = NAME
    is_counter = False
    interval_s = 0.05

    def __init__(self, rails: list[Rail]) -> None:
        self._rails = counted(rails)
        labels = " + ".join(r.label for r in self._rails)
        others = [r.label for r in rails if r not in self._rails]
        part = f", of which {', '.join(others)} are parts" if others else ""
        self.covers = f"{labels}{part}; not on them: the carrier board and what hangs on it"

    def read(self) -> float:
        """Return watts."""
        return sum(r.read_w() for r in self._rails)


def find_ina3221(sysfs: Path) -> Ina3221 | Missing:
    """Return the reader if the kernel shows at least one rail that can be read."""
    rails = find_rails(sysfs)
    if not rails:
        return Missing(
            NAME,
            f"no hwmon device named ina3221 under {sysfs}/class/hwmon",
            "Jetson with JetPack 5 or newer has it; older ones give no hwmon interface",
        )
    source = Ina3221(rails)
    try:
        source.read()
    except SensorError as error:
        return Missing(NAME, str(error), "make the file readable for this user")
    return source
