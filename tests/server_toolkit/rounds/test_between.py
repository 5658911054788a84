"""Hardening between rounds has steps by window, a growing attack and a share of real images."""

import pytest

from server_toolkit.robust.harden_config import HardenConfig
from server_toolkit.rounds.between import BetweenRounds, real_share
from server_toolkit.rounds.schedule import Schedule

SCHEDULE = Schedule.recommended(20)


def before(number, base=None, **given):
    base = base or HardenConfig(epsilon=0.3, seed=5)
    return BetweenRounds().config(base, number, rounds=20, schedule=SCHEDULE, **given)


def test_the_first_window_has_its_own_steps():
    assert {before(t).steps for t in range(1, 9)} == {80}
    assert {before(t).steps for t in range(14, 21)} == {50}


def test_a_large_attack_grows_with_the_rounds_up_to_its_full_size():
    assert [before(t).epsilon for t in (1, 5, 8, 11, 14, 20)] == pytest.approx(
        [0.1, 0.15, 0.225, 0.3, 0.3, 0.3]
    )


def test_an_attack_that_is_learned_at_once_is_the_same_in_every_round():
    assert {before(t, HardenConfig(epsilon=0.1)).epsilon for t in range(1, 21)} == {0.1}


def test_the_attack_inside_is_three_half_steps_on_unblended_images():
    made = before(14)
    assert (made.attack_steps, made.attack_step, made.mix_probability) == (3, 0.5, 0)
    assert (made.learning_rate, made.seed, made.label_source) == (0.02, 19, "teacher")


def test_other_settings_of_hardening_stay():
    made = before(14, HardenConfig(objective="trades", beta=3.0, flips=True))
    assert (made.objective, made.beta, made.flips) == ("trades", 3.0, True)


def test_real_images_have_a_share_that_grows_with_their_number():
    assert before(1).real_share is None
    assert before(1, real_per_class=1).real_share == pytest.approx(0.2)
    assert before(1, HardenConfig(real_share=0.4), real_per_class=1).real_share == 0.4
    assert real_share(10) == pytest.approx(10 / 14)
