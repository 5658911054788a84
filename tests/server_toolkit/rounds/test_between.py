"""Hardening between rounds: steps and attack by window, and a share of real images."""

import pytest

from server_toolkit.robust.harden_config import HardenConfig
from server_toolkit.rounds.between import BetweenRounds, real_share
from server_toolkit.rounds.schedule import Schedule

SCHEDULE = Schedule.recommended(20)


def before(number, base=None, **given):
    base = base or HardenConfig(epsilon=0.3, seed=5)
    return BetweenRounds().config(base, number, rounds=20, schedule=SCHEDULE, **given)


def test_each_window_and_the_end_have_their_own_steps():
    assert {before(t).steps for t in range(1, 14)} == {80}
    assert {before(t).steps for t in range(14, 20)} == {120}
    assert before(20).steps == 60


def test_the_first_window_trains_with_larger_attacks_but_not_with_any():
    for full, early in ((0.04, 0.07), (0.1, 0.175), (0.3, 0.2)):
        base = HardenConfig(epsilon=full)
        found = [before(t, base).epsilon for t in (1, 8, 14, 20)]
        assert found == pytest.approx([early, early, full, full])


def test_behind_the_last_round_epsilon_is_whole_whatever_the_window():
    base = HardenConfig(epsilon=0.1)
    made = BetweenRounds().config(base, 20, rounds=20, schedule=Schedule(harden=((1, 99),)))
    assert (made.epsilon, made.steps) == (0.1, 60)


@pytest.mark.parametrize("number", [1, 14, 20])
def test_the_attack_inside_is_three_half_steps(number):
    made = before(number)
    assert (made.attack_steps, made.attack_step) == (3, 0.5)
    assert (made.seed, made.label_source) == (5 + number, "teacher")


def test_the_rate_is_lower_behind_the_last_round():
    assert [before(t).learning_rate for t in (1, 14, 19, 20)] == [0.02, 0.02, 0.02, 0.01]


def test_other_settings_of_hardening_stay():
    made = before(14, HardenConfig(objective="trades", beta=3.0, flips=True))
    assert (made.objective, made.beta, made.flips) == ("trades", 3.0, True)


def test_real_images_have_a_share_that_grows_with_their_number():
    assert before(1).real_share is None
    assert before(1, real_per_class=1).real_share == pytest.approx(1 / 11)
    assert before(1, HardenConfig(real_share=0.4), real_per_class=1).real_share == 0.4
    assert real_share(10) == pytest.approx(0.5)
