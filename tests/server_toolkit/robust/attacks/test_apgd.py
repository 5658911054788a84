"""AutoPGD's schedule and steps are those of its paper."""

import pytest
import torch

from server_toolkit.robust.attacks.apgd import apgd_ce, apgd_dlr, apgd_t
from server_toolkit.robust.attacks.apgd_ascent import checkpoints
from server_toolkit.robust.attacks.geometry import lengths, project, random_start, steepest
from tests.server_toolkit.robust.attacks.models_for_tests import linear_task


def test_checkpoints_of_a_hundred_steps_are_the_papers():
    # p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_few_steps_have_checkpoints_too():
    assert list(checkpoints(5)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_lie_on_the_sphere_where_the_box_allows(norm):
    images = torch.full((50, 1, 4, 4), 0.5)
    starts = random_start(
        images, epsilon=0.2, norm=norm, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(lengths(starts - images, norm), torch.full((50,), 0.2))
    assert (starts > images).any()
    assert (starts < images).any()


def test_projections_by_hand():
    image = torch.tensor([[[[0.5, 0.9]]]])
    point = torch.tensor([[[[0.8, 1.3]]]])
    torch.testing.assert_close(
        project(point, image, epsilon=0.2, norm="linf"), torch.tensor([[[[0.7, 1.0]]]])
    )
    # The change (0.3, 0.4) has length 0.5: scaled by 0.25 / 0.5.
    torch.testing.assert_close(
        project(point, image, epsilon=0.25, norm="l2"), torch.tensor([[[[0.65, 1.0]]]])
    )
    inside = torch.tensor([[[[0.52, 0.9]]]])
    torch.testing.assert_close(project(inside, image, epsilon=0.25, norm="l2"), inside)


def test_steepest_directions_by_hand():
    gradient = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    signs = torch.tensor([[[[1.0, -1.0]]], [[[0.0, 0.0]]]])
    assert torch.equal(steepest(gradient, "linf"), signs)
    torch.testing.assert_close(
        steepest(gradient, "l2"), torch.tensor([[[[0.6, -0.8]]], [[[0.0, 0.0]]]])
    )


def peaked(images):
    """Two logits; class 1 gains on class 0, without reaching it, towards a pixel of 0.52."""
    distance = (images.flatten(1) - 0.52).abs().sum(1)
    return torch.stack([torch.ones_like(distance), -distance], dim=1)


def test_steps_shrink_until_the_peak_of_the_loss_is_met():
    visited = []

    def model(images):
        visited.append(images.detach().flatten().clone())
        return peaked(images)

    image, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    result = apgd_ce(model, image, label, epsilon=0.3)
    assert result.robust.all()
    assert len(visited) == 102  # the clean image, the start, a hundred steps: one pass each
    away = (torch.cat(visited[2:]) - 0.52).abs()
    assert away[:20].max() > 0.1  # at first over the whole ball
    assert away[-6:].max() < 0.05  # 0.6 halved at least four times, from the best point on


def test_the_first_step_has_length_two_epsilon_and_the_second_carries_a_quarter_of_it():
    visited = []
    weight = torch.tensor([[0.0], [-1.0]])

    def model(images):
        visited.append(images.detach().flatten().clone())
        return images.flatten(1) @ weight.T + torch.tensor([5.0, 0.0])

    image = torch.full((1, 1, 1, 1), 0.5)
    apgd_ce(model, image, torch.tensor([0]), epsilon=0.25, steps=2)
    # Class 1 grows as the pixel falls: from any start 0.5 down, projected to 0.25 and kept there.
    torch.testing.assert_close(torch.cat(visited[2:]), torch.tensor([0.25, 0.25]))


def scalar_ascent(loss, slope, image, start, epsilon, steps):
    """The points that algorithm 1 of the paper visits on one pixel, written for one number."""
    low, high = max(image - epsilon, 0), min(image + epsilon, 1)
    checks, size, halved = list(checkpoints(steps)), 2 * epsilon, True
    points = [start]
    current = previous = best = start
    best_at_check, rises, last_check = loss(start), 0, 0
    for k in range(1, steps + 1):
        plain = min(max(current + size * (1 if slope(current) > 0 else -1), low), high)
        share = 1.0 if k == 1 else 0.75
        new = current + share * (plain - current) + (1 - share) * (current - previous)
        new = min(max(new, low), high)
        # After a return to the best point, the step before ended where it really ended.
        rises += loss(new) > loss(points[-1])
        previous, current = current, new
        points.append(new)
        best = new if loss(new) > loss(best) else best
        if k in checks:
            stuck = rises <= 0.75 * (k - last_check) or (not halved and loss(best) <= best_at_check)
            if stuck:
                size, current = size / 2, best
            halved, best_at_check, rises, last_check = stuck, loss(best), 0, k
    return points


@pytest.mark.parametrize(("image", "peak"), [(0.5, 0.52), (0.5, 0.71), (0.1, 0.33)])
def test_the_path_is_that_of_algorithm_1(image, peak):
    visited = []

    def lead(pixel):
        return -((pixel - peak) ** 2) - 0.1

    def model(images):
        visited.append(images.detach().flatten().clone())
        pixel = images.flatten(1)[:, 0]
        return torch.stack([torch.zeros_like(pixel), lead(pixel)], dim=1)

    pixel = torch.full((1, 1, 1, 1), image, dtype=torch.float64)
    result = apgd_dlr(model, pixel, torch.tensor([0]), epsilon=0.25)  # of two: the lead itself
    assert result.robust.all()
    path = torch.cat(visited[1:])
    expected = scalar_ascent(
        lead, lambda x: -2 * (x - peak), image, float(path[0]), epsilon=0.25, steps=100
    )
    torch.testing.assert_close(path, torch.tensor(expected, dtype=torch.float64))


def test_targets_are_the_likeliest_wrong_classes_in_turn(monkeypatch):
    model, images, labels = linear_task(classes=6, count=1)
    seen = []

    def recording(logits, _, target):
        seen.append(int(target[0]))
        return 0 * logits.sum(1)

    monkeypatch.setattr("server_toolkit.robust.attacks.apgd.targeted_dlr", recording)
    apgd_t(model, images, labels, epsilon=1e-4, steps=1, targets=3)
    first, second, third = model(images)[0].argsort(descending=True)[1:4].tolist()
    assert seen == [first, first, second, second, third, third]  # a start and a step each
