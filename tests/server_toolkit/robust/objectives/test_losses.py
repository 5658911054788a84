"""Every loss is its paper's formula, worked out pixel by pixel, and its gradient is its slope."""

import math

import pytest
import torch

from server_toolkit.robust.objectives.base import plain_gradients
from server_toolkit.robust.objectives.inner import Ascent
from server_toolkit.robust.objectives.kl import Kl
from server_toolkit.robust.objectives.mart import Mart, largest_other
from server_toolkit.robust.objectives.pgd_at import PgdAt
from server_toolkit.robust.objectives.trades import Trades
from tests.server_toolkit.robust.objectives.tiny import (
    ADVERSARIAL,
    HARD,
    IMAGES,
    SCALE,
    SOFT,
    curved,
    scaled_pixels,
)

INNER = Ascent(steps=1)
OBJECTIVES = {
    "kl": Kl(INNER, clean_weight=0.5),
    "pgd_at": PgdAt(INNER),
    "trades": Trades(INNER, beta=6.0),
    "mart": Mart(INNER, beta=5.0),
}


def softmax(pixels):
    powers = [math.exp(SCALE * p) for p in pixels]
    return [p / sum(powers) for p in powers]


def ce(q, p):
    return -sum(a * math.log(b) for a, b in zip(q, p, strict=True))


def kl(q, p):
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a)


def mart_of_a_class(y, p_clean, p_attacked, beta):
    wrong = max(p for k, p in enumerate(p_attacked) if k != y)
    boosted = -math.log(p_attacked[y]) - math.log(1.0001 - wrong)
    return boosted + beta * (1 - p_clean[y]) * kl(p_clean, p_attacked)


FORMULAS = {
    "kl": lambda q, p, a: kl(q, a) + 0.5 * kl(q, p),
    "pgd_at": lambda q, p, a: ce(q, a),
    "trades": lambda q, p, a: ce(q, p) + 6 * kl(p, a),
    "mart": lambda q, p, a: sum(w * mart_of_a_class(y, p, a, 5) for y, w in enumerate(q)),
}


@pytest.mark.parametrize("labels", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_is_the_formula(name, labels):
    rows = zip(
        labels.tolist(),
        [softmax(x) for x in IMAGES.view(2, 3).tolist()],
        [softmax(x) for x in ADVERSARIAL.view(2, 3).tolist()],
        strict=True,
    )
    by_hand = sum(FORMULAS[name](*row) for row in rows) / 2
    terms = OBJECTIVES[name].loss(scaled_pixels(), IMAGES, ADVERSARIAL, labels)
    assert terms.total.item() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "combine"),
    [
        ("kl", lambda t: t.adversarial + 0.5 * t.clean),
        ("pgd_at", lambda t: t.adversarial),
        ("trades", lambda t: 6 * t.adversarial + t.clean),
        ("mart", lambda t: t.adversarial + 5 * t.clean),
    ],
)
def test_reported_terms_make_up_the_total(name, combine):
    terms = OBJECTIVES[name].loss(curved(), IMAGES, ADVERSARIAL, SOFT)
    assert combine(terms).item() == pytest.approx(terms.total.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart"])
def test_a_soft_label_costs_what_a_class_drawn_from_it_costs_on_average(name):
    model, objective = curved(), OBJECTIVES[name]
    image, attacked, q = IMAGES[:1], ADVERSARIAL[:1], SOFT[:1]
    classes = torch.eye(3, dtype=torch.float64)
    of_class = [objective.loss(model, image, attacked, c[None]).total for c in classes]
    expected = sum(w * loss for w, loss in zip(q[0], of_class, strict=True))
    assert objective.loss(model, image, attacked, q).total.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_is_the_slope(name):
    model = curved()

    def loss():
        return OBJECTIVES[name].loss(model, IMAGES, ADVERSARIAL, SOFT)

    _, gradients, _ = plain_gradients(loss, model)
    h = 1e-6
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        flat = parameter.detach().view(-1)
        for i in range(flat.numel()):
            before = flat[i].item()
            flat[i] = before + h
            up = loss().total.item()
            flat[i] = before - h
            down = loss().total.item()
            flat[i] = before
            assert gradient.view(-1)[i].item() == pytest.approx((up - down) / (2 * h), abs=2e-8)


def test_largest_other_class():
    p = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    expected = torch.tensor([[0.3, 0.5, 0.5], [0.8, 0.8, 0.1]])
    assert torch.equal(largest_other(p), expected)


def test_mart_stays_finite_where_a_wrong_class_is_certain():
    model = scaled_pixels()
    with torch.no_grad():
        model[1].weight.mul_(20)
    sure = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).view(1, 1, 1, 3)
    wrong = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.isfinite(OBJECTIVES["mart"].loss(model, sure, sure, wrong).total)
