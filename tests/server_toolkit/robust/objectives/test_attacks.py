"""The inner maximisation of every objective finds what can be found, inside the ball."""

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from models import ModelSpec
from models.networks import build_model
from server_toolkit.robust.attacks import pgd
from server_toolkit.robust.objectives.fast import fast
from server_toolkit.robust.objectives.inner import Ascent, cached_images
from server_toolkit.robust.objectives.kl import Kl
from server_toolkit.robust.objectives.mart import Mart
from server_toolkit.robust.objectives.pgd_at import PgdAt
from server_toolkit.robust.objectives.trades import START_DEVIATION, Trades
from tests.server_toolkit.robust.objectives.tiny import IMAGES, SOFT, curved, generator

SPEC = ModelSpec(channels=1, image_size=16, classes=10, width=8, depth=2, mean=(0.3,), std=(0.4,))
TEN = Ascent(steps=10)


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    return build_model(SPEC, seed=0), torch.rand(23, 1, 16, 16), torch.rand(23, 10).softmax(1)


@pytest.mark.parametrize("chunk", [None, 7, 1, 100])
def test_ascent_is_pgd_whatever_the_chunks(batch, chunk):
    model, x, q = batch
    expected = pgd(model, x, q, epsilon=0.1, steps=5, generator=generator())
    ours = Ascent(steps=5, chunk=chunk).from_uniform(
        model, x, q, epsilon=0.1, generator=generator()
    )
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("objective", [Kl(TEN, 1.0), PgdAt(TEN), Mart(TEN, 5.0)])
def test_two_linear_classes_are_attacked_at_the_corner(objective):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).double()
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    rise = (model[1].weight[1] - model[1].weight[0]).detach().sign()  # of the wrong class
    corner = (IMAGES + 0.1 * torch.stack([rise, -rise]).view(2, 1, 1, 3)).clamp(0, 1)
    found = objective.attack(model, IMAGES, labels, epsilon=0.1, generator=generator())
    assert torch.allclose(found, corner, atol=1e-12)


def test_fast_takes_one_step_of_five_quarters_epsilon():
    model, objective = curved(), fast()
    found = objective.attack(model, IMAGES, SOFT, epsilon=0.1, generator=generator(3))
    noise = torch.rand(IMAGES.shape, generator=generator(3), dtype=torch.float64)
    start = (IMAGES + 0.1 * (2 * noise - 1)).clamp(0, 1).requires_grad_()
    loss = -(SOFT * log_softmax(model(start), 1)).sum()
    (slope,) = torch.autograd.grad(loss, start)
    moved = start + 0.125 * slope.sign()
    by_hand = torch.minimum(torch.maximum(moved, IMAGES - 0.1), IMAGES + 0.1).clamp(0, 1)
    assert torch.allclose(found, by_hand, atol=1e-12)


def test_trades_ascends_the_divergence_from_the_clean_answer():
    model = curved()
    found = Trades(Ascent(steps=4), beta=6.0).attack(
        model, IMAGES, SOFT, epsilon=0.1, generator=generator(5)
    )
    clean = model(IMAGES).softmax(1).detach()
    noise = torch.randn(IMAGES.shape, generator=generator(5), dtype=torch.float64)
    x = IMAGES + START_DEVIATION * noise
    for _ in range(4):
        x = x.detach().requires_grad_()
        divergence = kl_div(log_softmax(model(x), 1), clean, reduction="sum")
        (slope,) = torch.autograd.grad(divergence, x)
        x = x + 0.025 * slope.sign()
        x = torch.minimum(torch.maximum(x, IMAGES - 0.1), IMAGES + 0.1).clamp(0, 1)
    assert torch.allclose(found, x, atol=1e-12)
    assert (found - IMAGES).abs().max() > 0.09


@pytest.mark.parametrize(
    "objective", [Kl(TEN, 1.0), PgdAt(TEN), Mart(TEN, 5.0), Trades(TEN, 6.0), fast()]
)
def test_attacked_images_stay_in_the_ball_and_in_range(batch, objective):
    model, x, q = batch
    found = objective.attack(model, x, q, epsilon=0.3, generator=generator())
    assert (found - x).abs().max() <= 0.3 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad


@pytest.mark.parametrize(("width", "images"), [(8, 201), (80, 20), (2048, 1)])
def test_chunks_hold_as_many_images_as_the_cache(width, images):
    spec = ModelSpec(
        channels=1, image_size=16, classes=10, width=width, depth=2, mean=(0.3,), std=(0.4,)
    )
    assert cached_images(spec) == images
