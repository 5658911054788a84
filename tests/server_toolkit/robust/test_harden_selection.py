"""The held-out part is apart from the rest, its best weights are kept, and patience runs out."""

import pytest
import torch
from torch import nn

from server_toolkit.robust.harden_config import HardenConfig
from server_toolkit.robust.harden_selection import Selection, split
from server_toolkit.robust.objectives.inner import Ascent

IMAGES = torch.tensor([0.1, 0.4, 0.6, 0.9]).view(4, 1, 1, 1)
LABELS = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])  # above one half is class 1


@pytest.mark.parametrize(("count", "share", "held"), [(100, 0.2, 20), (3, 0.1, 1), (2, 0.9, 1)])
def test_the_parts_are_disjoint_and_complete(count, share, held):
    trained_on, held_out = split(count, HardenConfig(holdout_share=share))
    assert len(held_out) == held
    assert sorted([*trained_on.tolist(), *held_out.tolist()]) == list(range(count))


def test_nothing_is_held_out_unless_asked_for():
    trained_on, held_out = split(5, HardenConfig())
    assert (trained_on.tolist(), held_out.tolist()) == ([0, 1, 2, 3, 4], [])


def threshold(at, slope=1.0):
    """Class 1 above `at`: robust accuracy at ε is the share of images farther than ε from it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-slope], [slope]]))
        model[1].bias.copy_(torch.tensor([slope * at, -slope * at]))
    return model


def selection(**config):
    settings = HardenConfig(epsilon=0.05, holdout_share=0.5, **config)
    return Selection(IMAGES, LABELS, settings, Ascent(10))


@pytest.mark.parametrize(
    ("at", "accuracy"), [(0.5, 1.0), (0.42, 0.75), (0.63, 0.75), (0.2, 0.75), (-1, 0.5)]
)
def test_accuracy_counts_the_images_that_no_shift_of_epsilon_carries_across(at, accuracy):
    assert selection().measure(threshold(at), step=1) == accuracy


def test_the_best_weights_are_kept_and_a_lower_loss_breaks_a_tie():
    chosen, models = selection(), [threshold(0.05), threshold(0.5), threshold(0.5, slope=3)]
    accuracies = [chosen.measure(model, step=n) for n, model in enumerate(models, start=1)]
    assert accuracies[0] < accuracies[1] == accuracies[2]
    assert chosen.best_step == 3
    again = threshold(0.5, slope=3)
    assert all(torch.equal(a, b) for a, b in zip(chosen.best, again.parameters(), strict=True))


def test_patience_counts_measurements_since_the_best():
    chosen, states = selection(patience=2), []
    for step, slope in enumerate([1.0, 3.0, 2.0, 1.0], start=1):
        chosen.measure(threshold(0.5, slope=slope), step=step)
        states.append(chosen.exhausted)
    assert states == [False, False, False, True]


def test_a_checkpoint_brings_everything_back():
    chosen, back = selection(patience=3), selection(patience=3)
    for step, slope in enumerate([3.0, 1.0], start=1):
        chosen.measure(threshold(0.5, slope=slope), step=step)
    back.load(chosen.best, chosen.to_dict())
    assert back.to_dict() == chosen.to_dict()
    for step in (3, 4):
        back.measure(threshold(0.5), step=step)
    assert back.exhausted
    assert back.best_step == 1
