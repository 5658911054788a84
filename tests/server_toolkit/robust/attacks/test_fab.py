"""FAB's steps are those of its paper."""

import pytest
import torch

from server_toolkit.robust.attacks import fab_t
from tests.server_toolkit.robust.attacks.models_for_tests import linear_model


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_first_steps_on_a_linear_model_by_hand(norm):
    weight = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    network = linear_model(weight, torch.tensor([0.6, 0.0]))  # class 0 leads by 0.35 at 0.5
    visited = []

    def model(images):
        visited.append(images.detach().clone())
        return network(images)

    image = torch.full((1, 1, 2, 2), 0.5)
    result = fab_t(model, image, torch.tensor([0]), epsilon=0.01, norm=norm, steps=2)
    assert result.robust.all()

    w = weight[0].view(1, 1, 2, 2)
    way = -0.35 * (w.sign() / 3.5 if norm == "linf" else w / w.square().sum())
    beyond = 1.05  # in units of the way to the boundary
    back = 0.9 * beyond
    # The next step mixes the point beyond the boundary seen from here with that seen from the
    # image, by the two ways' lengths.
    alpha = (1 - back) / (1 - back + 1)
    mixed = (1 - alpha) * (back + 1.05 * (1 - back)) + alpha * 1.05
    expected = [0, 0, beyond, back, mixed]  # the clean answer, then slope and check of two steps
    torch.testing.assert_close(
        torch.cat(visited), torch.cat([image + units * way for units in expected])
    )


def test_the_weight_of_the_image_is_at_most_a_tenth():
    visited = []

    def model(images):  # class 1 leads beyond 0.9, and looks near from everywhere
        visited.append(float(images.detach()))
        pixel = images.flatten(1)[:, 0]
        lead = torch.where(pixel > 0.9, 1.0, -0.1) + (pixel - pixel.detach())
        return torch.stack([torch.zeros_like(lead), lead], dim=1)

    fab_t(model, torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), epsilon=0.01, steps=2)
    first = 0.5 + 1.05 * 0.1
    # The projections: 0.1 onwards, and from the image to where the slope of 1 meets zero, 0.205.
    assert 0.1 / (0.1 + 0.205) > 0.1
    second = 0.9 * (first + 1.05 * 0.1) + 0.1 * (0.5 + 1.05 * 0.205)
    assert visited[2] == pytest.approx(first, abs=1e-6)
    assert visited[4] == pytest.approx(second, abs=1e-6)


def test_restarts_begin_half_as_far_away_as_epsilon():
    visited = []
    network = linear_model(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([9.0, 0.0]))

    def model(images):
        visited.append(images.detach().clone())
        return network(images)

    image = torch.full((1, 1, 1, 2), 0.5)
    fab_t(model, image, torch.tensor([0]), epsilon=0.2, steps=1, restarts=2)
    assert float((visited[3] - image).abs().max()) == pytest.approx(0.1)
