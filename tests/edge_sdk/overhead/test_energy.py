"""Joules of known power curves, and how sure they are."""

import math
import sys
import time

import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.overhead.energy import Energy, Idle, Trace, above_idle, idle_power, integrate
from edge_sdk.overhead.sampler import Sampler
from edge_sdk.overhead.sensors.meter import Meter, parse_line

from .conftest import Firmware, no_command


def trace(times, watts):
    return Trace(np.array(times, float), np.array(watts, float), is_counter=False)


def test_constant_power_is_exact_between_any_edges():
    energy = integrate(trace(np.arange(0, 10, 0.25), np.full(40, 3.0)), 1.1, 7.3)
    assert energy.joules == pytest.approx(3 * 6.2)
    assert energy.uncertainty_j == 0
    assert energy.samples == 25  # 1.25 to 7.25


def test_a_ramp_is_exact_under_the_trapezoid_rule_with_uneven_samples():
    times = np.array([0, 0.5, 0.6, 2, 3.7, 4])
    energy = integrate(trace(times, 2 * times), 0.25, 3.9)
    assert energy.joules == pytest.approx(3.9**2 - 0.25**2)


def test_a_jump_of_power_is_covered_by_the_uncertainty():
    times, step_at = np.arange(0, 4.01, 0.5), 1.9
    watts = np.where(times < step_at, 1.0, 5.0)
    energy = integrate(trace(times, watts), 0, 4)
    truth = 1 * step_at + 5 * (4 - step_at)
    assert energy.uncertainty_j == pytest.approx(0.5 / 2 * 4 / math.sqrt(3))
    assert abs(energy.joules - truth) <= math.sqrt(3) * energy.uncertainty_j


def test_a_counter_is_read_off_at_the_edges():
    times = np.arange(0, 5.01, 0.5)
    counter = Trace(times, 7 * times, is_counter=True)
    energy = integrate(counter, 0.6, 4.1)
    assert energy.joules == pytest.approx(7 * 3.5)
    assert energy.uncertainty_j == pytest.approx(math.hypot(1.75, 1.75) / math.sqrt(3))
    _, watts = counter.power()
    assert watts == pytest.approx(np.full(10, 7.0))


def test_a_stretch_shorter_than_the_sampling_has_no_energy():
    samples = trace([0, 1, 2, 3], [1, 1, 1, 1])
    assert integrate(samples, 1.2, 1.8) is None
    assert integrate(samples, 0.9, 1.8) is None
    assert integrate(samples, 0.9, 2.1) is not None
    assert integrate(samples, 2, 1) is None


def test_idle_is_subtracted_with_its_drift():
    watts = np.concatenate([np.full(11, 2.0), np.full(10, 8.0), np.full(11, 3.0)])
    samples = trace(np.arange(32), watts)
    idle = idle_power(samples, [(0, 10), (21, 31)])
    assert idle == Idle(watts=pytest.approx(2.5), uncertainty_w=pytest.approx(0.5))
    work = integrate(samples, 11, 20)
    net = above_idle(work, idle, 9)
    assert net.joules == pytest.approx(9 * (8 - 2.5))
    assert net.uncertainty_j == pytest.approx(9 * 0.5)
    assert above_idle(Energy(1, 3, 5), Idle(0, 4), 1).uncertainty_j == pytest.approx(5)
    assert idle_power(samples, [(0, 0.5)]) is None


def test_the_sampler_watches_a_sensor_in_the_background(sysfs):
    with Sampler(sysfs=sysfs("jetson_orin_nano"), run=no_command) as sampler:
        start = time.monotonic()
        time.sleep(0.6)
        end = time.monotonic()
    energy = integrate(sampler.trace(), start, end)
    assert energy.joules == pytest.approx(4.984 * 1.204 * (end - start), rel=1e-6)
    assert sampler.power_name == "Jetson INA3221"
    assert sampler.temperature(start, end).value == pytest.approx(48.531)
    assert sampler.throttling(start, end).value == "none"
    assert sampler.cpu_s < 0.2 * (end - start)


def test_a_sensor_that_fails_for_a_while_leaves_a_gap_and_no_error(sysfs):
    firmware = Firmware()
    with Sampler(sysfs=sysfs("pi5"), run=firmware) as sampler:
        sampler.power.interval_s = 0.01
        time.sleep(0.3)
        sampler._run = no_command
        sampler.power._run = no_command
        time.sleep(0.5)
    assert sampler.failures > 0
    assert len(sampler.trace().times_s) > 0


METER = """
import json, sys, time
started = time.monotonic()
while True:
    now = time.monotonic() - started
    sample = {fields}
    print(json.dumps(sample) if isinstance(sample, dict) else sample, flush=True)
    time.sleep(0.02)
"""


def meter_command(tmp_path, fields):
    script = tmp_path / "meter.py"
    script.write_text(METER.replace("{fields}", fields))
    return f"{sys.executable} {script}"


@pytest.mark.parametrize(
    "fields",
    [
        '{"power_w": 4.0}',
        '{"t_s": now + 5e6, "power_w": 4.0}',
        '{"t_s": now, "energy_j": 1000 + 4.0 * now, "firmware": "1.2"}',
    ],
)
def test_an_external_meter_is_any_command_that_prints_json_lines(tmp_path, fields):
    with Sampler(meter_command=meter_command(tmp_path, fields), sysfs=tmp_path) as sampler:
        start = time.monotonic()
        time.sleep(0.6)
        end = time.monotonic()
        energy = integrate(sampler.trace(), start, end)
        process = sampler.meter._process
    assert energy.joules == pytest.approx(4 * (end - start), rel=0.1)
    assert process.poll() is not None


def test_bad_lines_of_a_meter_are_counted_and_skipped(tmp_path):
    fields = '{"power_w": 2.0} if int(now * 50) % 2 else "no json"'
    with Sampler(meter_command=meter_command(tmp_path, fields)) as sampler:
        time.sleep(0.5)
    assert sampler.failures > 2
    assert set(sampler.trace().values) == {2.0}


@pytest.mark.parametrize(
    "line", [b"3.7", b"[1]", b"{}", b'{"power_w": "3"}', b'{"power_w": NaN}', b'{"power_w": true}']
)
def test_what_is_no_sample_is_refused(line):
    with pytest.raises(ValueError, match=r"."):
        parse_line(line)


@pytest.mark.parametrize(
    ("command", "words"),
    [("no-such-command-here", "cannot be started"), ("'", "cannot be started"), ("true", "ended")],
)
def test_a_meter_that_does_not_work_is_the_user_s_to_correct(command, words):
    with pytest.raises(ConfigError, match=words):
        Meter(command)
