"""Attacks find the adversarial image where the truth is known: linear and exhaustible models."""

import pytest
import torch

from server_toolkit.robust.attacks import (
    apgd_ce,
    apgd_dlr,
    apgd_t,
    autoattack,
    cw_l2,
    cw_linf,
    fab_t,
    square,
)
from tests.server_toolkit.robust.attacks.models_for_tests import distance_to_boundary, linear_task

NEAR = 0.02  # how close to the true distance an attack has to come


def cw_linf_in(model, images, labels, *, epsilon, norm):
    assert norm == "linf"
    return cw_linf(model, images, labels, epsilon=epsilon, steps=40)


def cw_l2_in(model, images, labels, *, epsilon, norm):
    assert norm == "l2"
    return cw_l2(model, images, labels, epsilon=epsilon, learning_rate=0.03, steps=150)


def square_in(model, images, labels, *, epsilon, norm):
    return square(model, images, labels, epsilon=epsilon, norm=norm, queries=800)


def autoattack_in(model, images, labels, *, epsilon, norm):
    return autoattack(model, images, labels, epsilon=epsilon, norm=norm, square_queries=50)


TARGETED = [apgd_t, fab_t, autoattack_in]
EXACT = [
    *[(attack, norm, 4) for attack in TARGETED for norm in ("linf", "l2")],
    # The others follow the class that leads at the moment, which need not be the nearest.
    *[(attack, norm, 2) for attack in (apgd_ce, apgd_dlr) for norm in ("linf", "l2")],
    (cw_linf_in, "linf", 2),
    (cw_l2_in, "l2", 2),
    (square_in, "linf", 2),
]


@pytest.mark.parametrize("edges", [False, True], ids=["no box", "box"])
@pytest.mark.parametrize(("attack", "norm", "classes"), EXACT)
def test_of_a_linear_model_the_images_nearer_than_epsilon_fall_and_no_other(
    attack, norm, classes, edges
):
    model, images, labels = linear_task(classes=classes, edges=edges, seed=3)
    distances = distance_to_boundary(model, images, labels, norm)
    free = distance_to_boundary(model, images, labels, norm, box=False)
    assert (distances > 1.05 * free).sum() >= (4 if edges else 0)  # there the box matters
    for epsilon in distances.quantile(torch.tensor([0.3, 0.8]).double()).tolist():
        result = attack(model, images, labels, epsilon=epsilon, norm=norm)
        assert not result.robust[distances < epsilon * (1 - NEAR)].any()
        assert result.robust[distances > epsilon * (1 + 1e-5)].all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_in_colour_turns_a_linear_model_near_its_distance(norm):
    model, images, labels = linear_task(classes=2, channels=3, count=8, seed=1)
    distances = distance_to_boundary(model, images, labels, norm)
    factor = 1.05 if norm == "linf" else 3  # its l2 windows have at least nine pixels
    epsilon = float(distances.max())
    result = square(model, images, labels, epsilon=factor * epsilon, norm=norm, queries=800)
    assert not result.robust.any()


@pytest.mark.parametrize("classes", [2, 4])
def test_cw_l2_without_a_bound_comes_close_to_the_least_distance_however_near(classes):
    model, images, labels = linear_task(classes=classes, seed=2)
    result = cw_l2(model, images, labels)
    assert not result.robust.any()
    assert (model(result.adversarial).argmax(1) != labels).all()
    found = (result.adversarial - images).flatten(1).norm(dim=1).double()
    least = distance_to_boundary(model, images, labels, "l2")
    assert least.min() < 0.02 * least.max()
    assert (found >= least * 0.999).all()
    assert (found <= least * 1.1).all()
    assert (found / least).mean() <= 1.02


def two_pixel_network(seed):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn((2, 24), generator=generator) * 5
    shift = -(first * torch.rand((2, 24), generator=generator)).sum(0)
    second = torch.randn((24, 4), generator=generator)
    return lambda x: torch.relu(x.flatten(1) @ first + shift) @ second


def falls_on_grid(model, image, label, epsilon, norm, resolution=161):
    """Whether any point of a fine grid in the ball and in [0, 1] gets another answer."""
    line = torch.linspace(-epsilon, epsilon, resolution)
    change = torch.cartesian_prod(line, line)
    if norm == "l2":
        change = change[change.norm(dim=1) <= epsilon]
    points = (image.flatten() + change).clamp(0, 1)
    return bool((model(points.view(-1, 1, 1, 2)).argmax(1) != label).any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_autoattack_equals_exhaustive_search_on_two_pixels(norm, seed):
    model = two_pixel_network(seed)
    images = torch.rand((40, 1, 1, 2), generator=torch.Generator().manual_seed(seed))
    labels = model(images).argmax(1)
    epsilon = 0.12
    result = autoattack(
        model, images, labels, epsilon=epsilon, norm=norm, square_queries=50, seed=seed
    )
    inner = torch.tensor(
        [
            falls_on_grid(model, x, y, 0.98 * epsilon, norm)
            for x, y in zip(images, labels, strict=True)
        ]
    )
    outer = torch.tensor(
        [
            falls_on_grid(model, x, y, 1.02 * epsilon, norm)
            for x, y in zip(images, labels, strict=True)
        ]
    )
    assert 5 <= inner.sum() <= 35  # the task says something
    assert not (result.robust & inner).any()
    assert not (~result.robust & ~outer).any()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_with_fewer_than_four_classes_is_exact_too(classes, norm):
    model, images, labels = linear_task(classes=classes, seed=5)
    distances = distance_to_boundary(model, images, labels, norm)
    epsilon = float(distances.sort().values[5:7].mean())
    result = autoattack_in(model, images, labels, epsilon=epsilon, norm=norm)
    assert torch.equal(result.robust, distances > epsilon)
