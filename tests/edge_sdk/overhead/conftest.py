"""Recorded answers of sensors, laid out as the files they came from."""

from pathlib import Path

import pytest

from edge_sdk.overhead.sensors.source import SensorError

RECORDINGS = Path(__file__).parent / "recordings"


@pytest.fixture
def sysfs(tmp_path):
    """A function that lays out the named recording and returns its root."""

    def lay_out(name):
        root = tmp_path / name
        root.mkdir()
        for line in (RECORDINGS / f"{name}.sysfs").read_text().splitlines():
            path, content = line.split(": ", 1)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content + "\n")
        return root

    return lay_out


@pytest.fixture
def nothing(tmp_path):
    """The /sys of a virtual machine."""
    (tmp_path / "class" / "thermal").mkdir(parents=True)
    return tmp_path


def no_command(command):
    raise SensorError(f"there is no command {command[0]}")


class Firmware:
    """vcgencmd of a Raspberry Pi 5; `throttled` may be changed."""

    def __init__(self):
        self.throttled = "throttled=0x0"

    def __call__(self, command):
        if command == ["vcgencmd", "pmic_read_adc"]:
            return (RECORDINGS / "pi5_pmic_read_adc.txt").read_text()
        if command == ["vcgencmd", "get_throttled"]:
            return self.throttled + "\n"
        return no_command(command)
