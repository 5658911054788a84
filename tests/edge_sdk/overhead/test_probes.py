"""The stop-watches note what happened, once, and change nothing."""

import time

import numpy as np
import pytest

from edge_sdk.overhead.probes import PEAKS_MEASURED, Recorder, cpu_s, peak_rss_bytes


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_span_notes_wall_and_cpu_time():
    recorder = Recorder()
    with recorder.span("work"):
        busy(0.05)
        time.sleep(0.1)
    ((start, end, cpu),) = recorder.spans["work"]
    assert end - start >= 0.15
    assert 0.05 <= cpu < 0.12


def test_cpu_time_of_ended_children_counts():
    import subprocess
    import sys

    before = cpu_s()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert cpu_s() - before >= 0.3


class Device:
    def run(self, value):
        return value + 1

    def attack(self, value):
        return self.run(self.run(value))


@pytest.fixture
def device():
    return type("Device", (Device,), dict(vars(Device)))


def test_a_wrapped_method_gives_what_it_gave_and_is_timed_every_time(device):
    recorder = Recorder()
    recorder.wrap(device, "run", "run")
    assert [device().run(1), device().run(5)] == [2, 6]
    assert len(recorder.spans["run"]) == 2


def test_runs_within_an_attack_are_the_attack_s(device):
    recorder = Recorder()
    recorder.wrap(device, "run", "run", within="attack")
    recorder.wrap(device, "attack", "attack")
    assert device().attack(1) == 3
    assert device().run(1) == 2
    assert {name: len(spans) for name, spans in recorder.spans.items()} == {"attack": 1, "run": 1}


def test_a_phase_between_two_places_counts_from_its_first_begin(device):
    recorder = Recorder()
    recorder.before(device, "run", lambda: recorder.begin("between"))
    recorder.after(device, "attack", lambda: recorder.end("between"))
    recorder.end("between")  # never begun
    device().attack(1)
    assert len(recorder.spans["between"]) == 1
    assert not recorder.is_open("between")


def test_an_error_passes_through_and_ends_the_span(device):
    recorder = Recorder()
    recorder.wrap(device, "run", "run")
    with pytest.raises(TypeError):
        device().run("text")
    assert len(recorder.spans["run"]) == 1


def test_the_peak_of_a_phase_is_that_phase_s_and_the_whole_s_is_kept():
    recorder = Recorder()
    with recorder.span("large"):
        large = np.ones(8 << 20)  # 64 MiB
        large_peak = peak_rss_bytes()
        del large
    with recorder.span("small"):
        pass
    (large_noted,), (small_noted,) = recorder.peaks["large"], recorder.peaks["small"]
    assert large_noted >= large_peak - (1 << 20)
    assert small_noted < large_noted - (32 << 20)
    assert recorder.to_json()["peak_rss_bytes"] >= large_noted


def test_memory_is_watched_in_the_first_spans_only():
    recorder = Recorder()
    for _ in range(PEAKS_MEASURED + 4):
        with recorder.span("step"):
            pass
    assert len(recorder.peaks["step"]) == PEAKS_MEASURED
    assert len(recorder.spans["step"]) == PEAKS_MEASURED + 4
