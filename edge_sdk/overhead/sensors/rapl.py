"""Intel and AMD PCs: the RAPL energy counters, through the kernel's powercap interface."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.overhead.sensors.source import Missing, SensorError, read_integer, read_text

NAME = "RAPL"
# Top-level zones only: intel-rapl:0:0 is a part of intel-rapl:0, and intel-rapl-mmio:0 shows the
# same package a second time.
_ZONE = re.compile(r"intel-rapl:\d+")


@dataclass
class Zone:
    """A counter in microjoules that starts again at 0 after `range_uj`."""

    name: str
    file: Path
    range_uj: int
    _last_uj: int | None = None
    _total_uj: int = 0

    def read_j(self) -> float:
        """Return joules since the first call, across the counter's wraps; raises `SensorError`."""
        now_uj = read_integer(self.file)
        if self._last_uj is not None:
            step = now_uj - self._last_uj
            self._total_uj += step if step >= 0 else step + self.range_uj + 1
        self._last_uj = now_uj
        return self._total_uj * 1e-6


def find_zones(sysfs: Path) -> list[Zone]:
    """Return the zones of whole processor packages under `sysfs`/class/powercap.

    Raises `SensorError` naming a file that cannot be read.
    """
    zones = []
    for directory in sorted((sysfs / "class" / "powercap").glob("intel-rapl:*")):
        if not _ZONE.fullmatch(directory.name):
            continue
        name = read_text(directory / "name")
        if name.startswith("package"):
            range_uj = read_integer(directory / "max_energy_range_uj")
            zones.append(Zone(name, directory / "energy_uj", range_uj))
    return zones


class Rapl:
    """The sum of all processor packages, as joules since the first reading."""

    name = NAME
    is_counter = True
    interval_s = 0.05

    def __init__(self, zones: list[Zone]) -> None:
        self._zones = zones
        self.covers = (
            f"{' + '.join(z.name for z in zones)}: the processor's own account of its package "
            "(on older processors a model, not a meter); not on it: memory modules, disks, "
            "graphics cards, screen, power supply"
        )

    def read(self) -> float:
        """Return joules."""
        return sum(z.read_j() for z in self._zones)


def find_rapl(sysfs: Path) -> Rapl | Missing:
    """Return the reader if there is a package whose counter this user may read."""
    try:
        zones = find_zones(sysfs)
        if not zones:
            return Missing(
                NAME,
                f"no intel-rapl package under {sysfs}/class/powercap",
                "Intel and AMD processors have it, virtual machines and containers mostly not; "
                "on bare metal try `modprobe intel_rapl_msr`",
            )
        source = Rapl(zones)
        source.read()
    except SensorError as error:
        return Missing(
            NAME,
            f"{error} (Linux lets only root read the counter)",
            "run `sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj` (until the next "
            "boot), or run the bench as root",
        )
    return source
