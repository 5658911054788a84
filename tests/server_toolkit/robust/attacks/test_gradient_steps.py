"""Attacks do what theory says on a linear model, and keep to their ball and to [0, 1]."""

import pytest
import torch

from server_toolkit.robust.attacks import fgsm, pgd


def linear_model(weight):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(weight.shape[1], len(weight)))
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.zero_()
    return model


@pytest.fixture
def two_class():
    # Logit difference is w·x; the worst l∞ change for class 0 is -epsilon * sign(w).
    w = torch.tensor([1.0, -2.0, 0.5, -0.1])
    return linear_model(torch.stack([w, torch.zeros(4)])), w


def test_fgsm_is_the_worst_case_of_a_linear_model(two_class):
    model, w = two_class
    x = torch.full((2, 1, 2, 2), 0.5)
    out = fgsm(model, x, torch.tensor([0, 1]), epsilon=0.1)
    torch.testing.assert_close(out[0].flatten(), 0.5 - 0.1 * w.sign())
    torch.testing.assert_close(out[1].flatten(), 0.5 + 0.1 * w.sign())


def test_pgd_reaches_the_same_corner_from_any_start(two_class):
    model, w = two_class
    x = torch.full((8, 1, 2, 2), 0.5)
    generator = torch.Generator().manual_seed(3)
    out = pgd(
        model, x, torch.zeros(8, dtype=torch.long), epsilon=0.1, steps=10, generator=generator
    )
    corner = (0.5 - 0.1 * w.sign()).expand(8, 4)
    torch.testing.assert_close(out.flatten(1), corner, rtol=0, atol=1e-6)


def test_soft_labels_ascend_the_divergence_from_them(two_class):
    model, w = two_class
    x = torch.full((1, 1, 2, 2), 0.5)
    soft = torch.tensor([[0.9, 0.1]])  # the model is near 0.35: more class 1 is further away
    out = pgd(model, x, soft, epsilon=0.1, steps=10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(out[0].flatten(), 0.5 - 0.1 * w.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_result_stays_in_the_ball_and_in_the_unit_range(attack):
    torch.manual_seed(0)
    model = linear_model(torch.randn(3, 16))
    x = torch.rand(20, 1, 4, 4).round(decimals=1)  # with pixels at 0 and 1
    y = torch.arange(20) % 3
    if attack == "fgsm":
        out = fgsm(model, x, y, epsilon=0.3)
    else:
        generator = torch.Generator().manual_seed(0)
        out = pgd(model, x, y, epsilon=0.3, steps=5, step_size=0.2, generator=generator)
    assert out.min() >= 0
    assert out.max() <= 1
    assert (out - x).abs().max() <= 0.3 + 1e-6
    assert (out - x).abs().max() > 0.2


def test_one_seed_gives_one_attack():
    torch.manual_seed(0)
    model = linear_model(torch.randn(3, 16))
    x, y = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.long)

    def attack(seed):
        generator = torch.Generator().manual_seed(seed)
        return pgd(model, x, y, epsilon=0.1, steps=0, generator=generator)

    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))
