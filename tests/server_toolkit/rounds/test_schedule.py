import pytest

from server_toolkit.rounds.schedule import FEWEST_ROUNDS, Schedule


def hardened(schedule, rounds):
    return [n for n in range(rounds + 2) if schedule.hardens_before(n, rounds=rounds)]


def test_by_default_nothing_is_hardened_between_rounds():
    assert hardened(Schedule(), 10) == []


def test_every_window_is_half_open():
    assert hardened(Schedule(harden=((1, 3), (5, 6))), 10) == [1, 2, 5]


def test_nothing_is_hardened_after_the_last_round():
    assert hardened(Schedule(harden=((1, 9),)), 3) == [1, 2]


def test_the_recommended_one_for_twenty_rounds_is_that_of_the_log():
    schedule = Schedule.recommended(20)
    assert schedule == Schedule(harden=((1, 14), (14, 20)), distil=(5, 9, 14))


@pytest.mark.parametrize("rounds", range(FEWEST_ROUNDS, 60))
def test_the_recommended_one_distils_three_times_and_ends_hardened(rounds):
    schedule = Schedule.recommended(rounds)
    (first, end), (late, last) = schedule.harden
    assert (first, last) == (1, rounds)
    assert end == late < rounds
    once, twice, thrice = schedule.distil
    assert first < once < twice < thrice == late


def test_a_run_of_few_rounds_has_none():
    assert Schedule.recommended(FEWEST_ROUNDS - 1) == Schedule()


@pytest.mark.parametrize(
    ("harden", "distil"),
    [
        (((0, 2),), ()),
        (((3, 3),), ()),
        (((3, 5), (4, 6)), ()),
        (((1, 5),), (4, 3)),
        (((3, 5),), (3,)),
        ((), (2,)),
    ],
)
def test_windows_out_of_order_are_refused(harden, distil):
    with pytest.raises(ValueError, match=r"windows|distil"):
        Schedule(harden=harden, distil=distil)
