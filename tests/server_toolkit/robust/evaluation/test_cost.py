"""The costs by which progress is told are those that attacks have."""

import numpy as np
import pytest
import torch

from server_toolkit.robust.attacks.model import loss_gradient
from server_toolkit.robust.evaluation import judge
from server_toolkit.robust.evaluation.cost import attack_passes
from server_toolkit.robust.evaluation.crafting import AttackSettings
from server_toolkit.robust.evaluation.plan import ATTACKS


class Unbreakable:
    """Answers class 0 of three, however the image slopes the outputs; counts passes."""

    def __init__(self):
        self.passes = 0

    def __call__(self, x):
        self.passes += len(x) * (2 if torch.is_grad_enabled() and x.requires_grad else 1)
        slope = 0.01 * x.flatten(1)[:, :3]
        return slope + torch.tensor([1.0, 0.0, 0.0])


def test_a_gradient_is_two_passes():
    model = Unbreakable()
    loss_gradient(model, torch.zeros(5, 1, 2, 2), lambda logits: logits.sum(1))
    assert model.passes == 10


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_image_that_stands_costs_what_the_progress_says(attack):
    settings = AttackSettings(norm="linf", epsilon=0.1, steps=7, square_queries=60)
    images = np.random.default_rng(0).uniform(0, 1, (8, 1, 8, 8)).astype(np.float32)
    model = Unbreakable()
    judge(
        model, images, np.zeros(8, np.int64), epsilon=0.1, attacks=attack, steps=7,
        square_queries=60,
    )  # fmt: skip
    beside = 8 * 4  # clean answers of judge and attack, and what finds out about gradients
    expected = 8 * attack_passes(attack, settings, classes=3)
    assert 0.9 * expected - beside <= model.passes <= 1.1 * expected + beside
