import numpy as np

from server_toolkit.simulate.participation import attendance

DEVICES = tuple(f"device-{i:02}" for i in range(20))


def draw(number, *, seed=0, participation=1.0, late=0.0, never=0.0):
    return attendance(
        DEVICES, round=number, seed=seed, participation=participation, late=late, never=never
    )


def test_everybody_answers_in_time_unless_told_otherwise():
    assert draw(0).on_time == DEVICES
    assert draw(0).late == ()


def test_a_share_of_the_devices_is_asked_another_one_each_round():
    rounds = [draw(number, participation=0.3).on_time for number in range(200)]
    assert {len(r) for r in rounds} == {6}
    assert all(list(r) == sorted(set(r)) for r in rounds)
    often = np.array([sum(d in r for r in rounds) for d in DEVICES])
    assert abs(often - 60).max() < 5 * np.sqrt(200 * 0.3 * 0.7)
    assert draw(7, participation=0.3) == draw(7, participation=0.3)
    assert draw(7, participation=0.3) != draw(7, participation=0.3, seed=1)
    assert len(draw(0, participation=0.001).on_time) == 1


def test_stragglers_come_as_often_as_told():
    rounds = [draw(number, late=0.2, never=0.3) for number in range(300)]
    late = sum(len(r.late) for r in rounds) / 6000
    on_time = sum(len(r.on_time) for r in rounds) / 6000
    assert abs(late - 0.2) < 0.03
    assert abs(on_time - 0.5) < 0.03
    assert all(not set(r.late) & set(r.on_time) for r in rounds)


def test_one_device_answers_even_where_nobody_should():
    rounds = [draw(number, late=0.5, never=0.5) for number in range(20)]
    assert {len(r.on_time) for r in rounds} == {1}
    assert len({r.on_time for r in rounds}) > 1
