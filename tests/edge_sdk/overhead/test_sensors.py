"""Every reader against what its kind of sensor answers, and against what it should refuse."""

import os

import pytest

from edge_sdk.overhead.sampler import Sampler, find_power
from edge_sdk.overhead.sensors.heat import (
    Throttle,
    find_clocks,
    find_temperatures,
    read_clock_mhz,
    read_hottest_c,
)
from edge_sdk.overhead.sensors.jetson import Ina3221, find_ina3221
from edge_sdk.overhead.sensors.rapl import Rapl, find_rapl, find_zones
from edge_sdk.overhead.sensors.raspberry_pi import (
    PmicRails,
    find_pmic,
    parse_rails,
    parse_throttled,
)
from edge_sdk.overhead.sensors.source import Missing, SensorError, run_command

from .conftest import RECORDINGS, Firmware, no_command


def test_pi_5_power_is_the_sum_of_volts_times_amperes_over_its_rails():
    rails = parse_rails((RECORDINGS / "pi5_pmic_read_adc.txt").read_text())
    assert len(rails) == 12
    assert not {"EXT5V", "BATT"} & set(rails)  # no current is measured there
    assert rails["VDD_CORE"] == pytest.approx(1.8)
    by_hand = 0.37 + 0.264 + 0.27 + 0.0055 + 0 + 0.22 + 0.24 + 1.8 + 0 + 0.00033 + 0.0024 + 0.102
    assert PmicRails(Firmware()).read() == pytest.approx(by_hand)
    assert "5 V" in PmicRails.covers


@pytest.mark.parametrize(
    "answer", ["", 'error=1 error_msg="Command not registered"', "EXT5V_V volt(24)=5.1V"]
)
def test_a_pi_without_a_pmic_is_no_sensor(answer):
    found = find_pmic(lambda _: answer)
    assert isinstance(found, Missing)
    assert "no rail" in found.reason


@pytest.mark.parametrize(
    ("text", "now", "since_boot"),
    [
        ("throttled=0x0\n", (), ()),
        ("throttled=0x50000", (), ("under-voltage", "throttled")),
        ("throttled=0x80008", ("soft temperature limit",), ("soft temperature limit",)),
        ("throttled=0x7", ("under-voltage", "ARM frequency capped", "throttled"), ()),
    ],
)
def test_throttling_flags_are_read_bit_by_bit(text, now, since_boot):
    found = parse_throttled(text)
    assert (found.now, found.since_boot) == (now, since_boot)


def test_throttling_garbage_is_refused():
    with pytest.raises(SensorError):
        parse_throttled("VCHI initialization failed")


def test_a_jetson_that_measures_its_whole_input_counts_nothing_twice(sysfs):
    source = find_ina3221(sysfs("jetson_orin_nano"))
    assert isinstance(source, Ina3221)
    assert source.read() == pytest.approx(4.984 * 1.204)
    assert "VDD_SOC" in source.covers


def test_a_jetson_without_such_a_rail_adds_its_monitors_up(sysfs):
    source = find_ina3221(sysfs("jetson_two_monitors"))
    assert isinstance(source, Ina3221)
    assert source.read() == pytest.approx(3.1 + 20 * 0.05 + 20 * 0.025)  # 3.1 W: power1_input
    assert "NC" not in source.covers.split(" + ")


def test_rapl_counts_packages_once_and_goes_on_after_its_counter_wraps(sysfs):
    root = sysfs("pc_intel")
    assert [z.name for z in find_zones(root)] == ["package-0"]
    source = find_rapl(root)
    assert isinstance(source, Rapl)
    counter = root / "class/powercap/intel-rapl:0/energy_uj"
    counter.write_text("262143328850\n")
    assert source.read() == pytest.approx(0.32885)
    counter.write_text("0\n")  # the range's last value is max_energy_range_uj itself
    assert source.read() == pytest.approx(0.328851)
    counter.write_text("999999\n")
    assert source.read() == pytest.approx(1.32885)


def test_rapl_that_only_root_may_read_says_so_and_what_to_do(sysfs, monkeypatch):
    root = sysfs("pc_intel")
    file = root / "class/powercap/intel-rapl:0/energy_uj"
    if os.geteuid():
        file.chmod(0)
    else:  # root may read everything
        file.unlink()
        file.mkdir()
    found = find_rapl(root)
    assert isinstance(found, Missing)
    assert "energy_uj" in found.reason
    assert "root" in found.reason
    assert "chmod" in found.remedy


def test_a_machine_without_sensors_says_why_for_every_kind(nothing):
    source, missing = find_power(nothing, no_command)
    assert source is None
    assert [m.name for m in missing] == ["Raspberry Pi 5 PMIC", "Jetson INA3221", "RAPL"]
    assert all(m.reason and m.remedy for m in missing)
    sampler = Sampler(sysfs=nothing, run=no_command)
    for value in (
        sampler.no_power("J"), sampler.temperature(0, 1), sampler.clock(0, 1),
        sampler.throttling(0, 1),
    ):  # fmt: skip
        assert value.kind == "absent"
        assert value.reason
        assert value.remedy


@pytest.mark.parametrize(
    ("recording", "celsius"), [("pi5", 52.35), ("jetson_orin_nano", 48.531), ("pc_intel", 71.0)]
)
def test_temperature_is_the_processor_s(sysfs, recording, celsius):
    assert read_hottest_c(find_temperatures(sysfs(recording))) == pytest.approx(celsius)


def test_a_zone_that_does_not_answer_is_left_out(sysfs):
    root = sysfs("jetson_orin_nano")
    (root / "class/thermal/thermal_zone0/temp").write_text("")
    assert find_temperatures(root) == {}


def test_amd_temperature_comes_from_hwmon(tmp_path):
    directory = tmp_path / "class/hwmon/hwmon2"
    directory.mkdir(parents=True)
    (directory / "name").write_text("k10temp\n")
    (directory / "temp1_input").write_text("63250\n")
    assert read_hottest_c(find_temperatures(tmp_path)) == 63.25


def test_clock_is_the_fastest_core_s(sysfs):
    assert read_clock_mhz(find_clocks(sysfs("pc_intel"))) == pytest.approx(3400.123)


def test_intel_throttling_is_counted_from_look_to_look(sysfs):
    root = sysfs("pc_intel")
    throttle = Throttle(root, no_command)
    assert throttle.look() == frozenset()
    (root / "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count").write_text("9\n")
    assert throttle.look() == {"thermal events"}
    assert throttle.look() == frozenset()


def test_jetson_throttling_is_a_cooling_device_at_work(sysfs):
    root = sysfs("jetson_orin_nano")
    throttle = Throttle(root, no_command)
    assert throttle.look() == frozenset()
    (root / "class/thermal/cooling_device0/cur_state").write_text("2\n")
    assert len(throttle.look()) == 1


def test_pi_throttling_before_the_start_is_not_blamed_on_the_run(sysfs):
    firmware = Firmware()
    firmware.throttled = "throttled=0x10000"
    throttle = Throttle(sysfs("pi5"), firmware)
    assert throttle.look() == frozenset()
    firmware.throttled = "throttled=0x50000"
    assert throttle.look() == {"throttled"}
    assert throttle.look() == frozenset()
    firmware.throttled = "throttled=0x50001"
    assert throttle.look() == {"under-voltage"}


def test_a_missing_or_failing_command_is_a_sensor_error():
    with pytest.raises(SensorError, match="no command"):
        run_command(["no-such-command-here"])
    with pytest.raises(SensorError, match="failed"):
        run_command(["false"])
