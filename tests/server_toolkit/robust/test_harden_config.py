"""Settings out of range are named; schedules are the lines they are described as."""

import pytest

from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden_config import HardenConfig


@pytest.mark.parametrize(
    "field",
    [
        dict(objective="sgd"),
        dict(label_source="guess"),
        dict(start="anywhere"),
        dict(averaging="mean"),
        dict(shift_fill="x"),
        dict(epsilon=-0.1),
        dict(epsilon=float("nan")),
        dict(steps=0),
        dict(teacher_temperature=0.0),
        dict(awp_gamma=-0.01),
        dict(ema_decay=1.0),
        dict(real_share=1.5),
        dict(holdout_share=1.0),
        dict(patience=0),
    ],
)
def test_value_out_of_range_is_named(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        HardenConfig(**field)


def test_epsilon_rises_on_a_line_to_its_full_value():
    config = HardenConfig(epsilon=0.4, steps=10, epsilon_warmup=0.4)
    first = [config.epsilon_at(step) for step in range(6)]
    assert first == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_without_a_warm_up_epsilon_is_full_from_the_start():
    assert HardenConfig(epsilon=0.4).epsilon_at(0) == 0.4


def test_learning_rate_falls_to_zero_over_the_second_half():
    config = HardenConfig(learning_rate=1.0, steps=10)
    rates = [config.learning_rate_at(step) for step in range(10)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
