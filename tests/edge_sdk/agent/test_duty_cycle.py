"""Training takes at most its part of the time, and ends soon when told to."""

import numpy as np
import pytest

from edge_sdk.agent.config import load_config
from edge_sdk.agent.duty_cycle import LONGEST_NAP_S, SHORTEST_NAP_S, DutyCycle
from edge_sdk.agent.local_training import train_round
from edge_sdk.errors import ConfigError
from edge_sdk.protocol.messages import BlobRef, Task, TrainingSettings
from edge_sdk.protocol.updates import encode_weights


class Time:
    """A clock that only work and sleep move; every sleep lasts `late_s` too long."""

    def __init__(self, late_s=0.0):
        self.now_s, self.slept_s, self.naps, self.late_s = 100.0, 0.0, [], late_s

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now_s += seconds + self.late_s
        self.slept_s += seconds + self.late_s


def work(duty, time, seconds, times):
    for _ in range(times):
        assert not duty()
        time.now_s += seconds
    duty()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("late_s", [0.0, 0.003])
def test_work_takes_its_part_of_the_time(part, late_s):
    time = Time(late_s)
    work(DutyCycle(part, lambda: False, clock=lambda: time.now_s, sleep=time.sleep), time, 0.02, 50)
    whole_s = time.now_s - 100
    assert 50 * 0.02 / whole_s == pytest.approx(part, rel=0.05)
    assert whole_s >= 50 * 0.02 / part - SHORTEST_NAP_S


def test_all_of_the_time_never_rests():
    time = Time()
    work(DutyCycle(1.0, lambda: False, clock=lambda: time.now_s, sleep=time.sleep), time, 0.02, 50)
    assert time.naps == []


def test_what_comes_before_the_first_micro_batch_is_not_counted():
    time = Time()
    duty = DutyCycle(0.5, lambda: False, clock=lambda: time.now_s, sleep=time.sleep)
    time.now_s += 1000
    assert not duty()
    assert time.naps == []


def test_a_stop_is_noticed_within_a_nap():
    time, stopped_at = Time(), 103.0
    duty = DutyCycle(
        0.01, lambda: time.now_s >= stopped_at, clock=lambda: time.now_s, sleep=time.sleep
    )
    duty()
    time.now_s += 1.0  # 99 s of rest are due
    assert duty()
    assert time.now_s <= stopped_at + LONGEST_NAP_S


@pytest.mark.parametrize("part", [0, -0.5, 1.5])
def test_an_impossible_part_is_refused_by_name(device, part):
    text = device.file.read_text() + f"[compute]\nduty_cycle = {part}\n"
    device.file.write_text(text)
    with pytest.raises(ConfigError, match=r"compute\.duty_cycle"):
        load_config(device.file)


def test_a_round_at_a_quarter_of_the_time_takes_four_times_as_long_and_sends_the_same(
    device, small_training_program, small_dataset, tmp_path
):
    layout = small_training_program.layout
    program, base = tmp_path / "program.tsp", tmp_path / "base"
    small_training_program.save(program)
    weights = np.random.default_rng(0).normal(0, 0.1, layout.size).astype(np.float32)
    base.write_bytes(encode_weights(weights, layout))
    images = device.file.parent / "images.npz"
    np.savez(images, images=small_dataset.images, labels=small_dataset.labels)
    blob = BlobRef(sha256="0" * 64, size=1)
    settings = TrainingSettings(
        epochs=6, batch_size=8, learning_rate=0.01, momentum=0.9, weight_decay=0.0,
        proximal_mu=0.0, seed=1,
    )  # fmt: skip
    task = Task(
        run="test", round=0, layout=layout.fingerprint, program=blob, base=blob,
        training=settings, encoding="int8", issued_at_s=1.0, expires_at_s=2.0,
    )  # fmt: skip
    offers = []
    text = device.file.read_text()
    for part in (1.0, 0.25):
        device.file.write_text(f"{text}[compute]\nniceness = 0\nduty_cycle = {part}\n")
        offers.append(
            train_round(
                task,
                config=load_config(device.file),
                program_path=program,
                base_path=base,
                residual=None,
                should_stop=lambda: False,
                progress=lambda *_: None,
            ).offer
        )
    whole, quarter = offers
    assert quarter.blob == whole.blob
    # Its CPU time lies within the time that it worked, and that is at most a quarter of all.
    assert quarter.wall_s >= 0.8 * quarter.cpu_s / 0.25
