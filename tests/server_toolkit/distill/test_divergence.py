"""A run that diverges comes back, however wrong its rates were."""

import math

import numpy as np
import pytest
import torch

from server_toolkit.distill.checkpoint import DistillState
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.divergence import guard_against_divergence
from server_toolkit.distill.engine import distill
from server_toolkit.errors import DistillationError

from .conftest import SPEC


def state_of(**values):
    values.setdefault("log_step", 0.0)
    return DistillState.fresh({name: torch.tensor(v) for name, v in values.items()})


def add_losses(state, losses, *, adam_count):
    state.losses += losses
    state.iteration += len(losses)
    state.adam_count = adam_count
    return guard_against_divergence(state, losses[-1])


@pytest.mark.parametrize("losses_after", [[5.0] * 20, [float("nan")]])
def test_divergence_goes_back_to_the_best_at_half_the_rates(losses_after):
    state = state_of(images=[0.0, 0.0])
    state.values["images"] += 1
    assert add_losses(state, [2.0] * 20, adam_count=20) is None
    assert state.rate_scale == 1.0

    state.values["images"] += 1
    assert "divided by 2" in add_losses(state, losses_after, adam_count=25)
    assert state.values["images"].tolist() == [1, 1]
    assert (state.rate_scale, state.adam_count) == (0.5, 0)


def test_a_student_that_flies_off_at_once_has_its_step_size_cut_and_no_rate():
    state = state_of(images=[0.5], log_step=math.log(1024.0))
    for cut, left in ((2, 512), (4, 128), (16, 8)):
        assert f"divided by {cut}" in add_losses(state, [math.inf], adam_count=0)
        assert state.values["log_step"].exp().item() == pytest.approx(left)
    assert state.rate_scale == 1.0


def test_cuts_in_a_row_are_squares_and_a_better_window_ends_the_row():
    state = state_of(images=[0.0])
    add_losses(state, [1.0] * 20, adam_count=20)
    for scale in (1 / 2, 1 / 8, 1 / 128):
        add_losses(state, [9.0] * 20, adam_count=20)
        assert state.rate_scale == scale
    add_losses(state, [0.5] * 20, adam_count=20)
    add_losses(state, [9.0] * 20, adam_count=20)
    assert state.rate_scale == 1 / 256


def test_a_first_window_above_the_first_loss_is_divergence_too():
    state = state_of(images=[0.0])
    state.values["images"] += 1
    assert "rose from 1.000" in add_losses(state, [0.9] + [4.0] * 19, adam_count=20)
    assert state.values["images"].tolist() == [0]


def test_falling_loss_is_left_alone():
    state = state_of(images=[0.0, 0.0])
    for iteration in range(1, 61):
        state.values["images"] += 1
        assert add_losses(state, [1 / iteration], adam_count=iteration) is None
    assert state.values["images"].tolist() == [60] * 2


def test_it_gives_up_after_a_number_of_returns_in_a_row():
    state = state_of(images=[0.0])
    for _ in range(6):
        assert add_losses(state, [math.nan], adam_count=5)
    with pytest.raises(DistillationError, match="learning rates or initial_step_size"):
        add_losses(state, [math.nan], adam_count=5)


ABSURD = 1e4


@pytest.mark.parametrize(
    "rates",
    [
        dict(image_learning_rate=ABSURD),
        dict(step_size_learning_rate=ABSURD),
        dict(initial_step_size=1e12),
        dict(label_learning_rate=ABSURD, initial_step_size=ABSURD),
    ],
)
def test_absurd_rates_still_end_with_a_student_nearer_to_its_target(trajectories, rates):
    config = DistillConfig(
        iterations=80,
        images_per_class=2,
        batch_size=6,
        student_steps=3,
        last_round=None,
        **rates,
    )
    proxy = distill(trajectories, SPEC, config=config)
    assert proxy.metadata["match_loss"] < 0.9  # 1 is a student that never moves
    assert np.isfinite(proxy.images).all()
