"""Weight averages are their formulas."""

import pytest
import torch

from server_toolkit.robust.harden_averaging import WeightAverage
from server_toolkit.robust.harden_config import HardenConfig


def averages(values, **config):
    """Feed one number a step and return the mean after each, None before there is one."""
    average = WeightAverage(HardenConfig(steps=len(values), **config))
    means = []
    for step, value in enumerate(values, start=1):
        average.update([torch.tensor([value], dtype=torch.float64)], step=step)
        means.append(None if average.mean is None else average.mean[0].item())
    return means


def test_none_keeps_no_mean():
    assert averages([1.0, 2.0], averaging="none") == [None, None]


def test_swa_is_the_mean_of_the_steps_after_its_start():
    values = [9.0, 7.0, 1.0, 2.0, 6.0, 3.0]
    means = averages(values, averaging="swa", swa_start=0.5)
    assert means == [None, None, None, 2.0, 4.0, pytest.approx(11 / 3)]


def test_ema_forgets_at_the_rate_of_its_decay_or_faster_while_young():
    values = [1.0, 5.0, -2.0, 4.0, 0.0]
    expected, mean = [], values[0]
    for step, value in enumerate(values, start=1):
        decay = min(0.3, step / (step + 9)) if step > 1 else 0.0
        mean = decay * mean + (1 - decay) * value
        expected.append(mean)
    assert averages(values, averaging="ema", ema_decay=0.3) == pytest.approx(expected)


def test_mean_is_a_copy():
    average, weights = WeightAverage(HardenConfig(averaging="ema")), torch.zeros(3)
    average.update([weights], step=1)
    weights += 1
    assert average.mean[0].abs().max() == 0
