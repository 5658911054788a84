"""Square proposes what its paper says, and asks the model about nothing in vain."""

import numpy as np
import pytest
import torch

from server_toolkit.robust.attacks import square
from server_toolkit.robust.attacks.square import window_side
from server_toolkit.robust.attacks.square_proposals import (
    bump,
    l2_proposal,
    l2_start,
    linf_proposal,
    linf_start,
)

EPSILON = 0.1


def side(query, norm="linf", size=32):
    return window_side(query, (1, 3, size, size), p_init=0.8, norm=norm)


def test_windows_shrink_by_the_schedule_for_ten_thousand_queries():
    # sqrt(0.8 / 2^k * 32 * 32) for the k halvings so far
    firsts = [0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert [side(q) for q in firsts] == [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    lasts = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    assert [side(q) for q in lasts] == [29, 20, 14, 10, 7, 5, 4, 3, 2]


def test_l2_windows_are_odd_and_at_least_three_and_fit():
    assert [side(q, "l2") for q in (0, 11, 51, 201, 1001, 4999)] == [29, 21, 15, 11, 5, 3]
    assert side(0, "l2", size=4) == 4


def test_linf_starts_are_vertical_stripes_at_the_ends_of_the_ball():
    images = torch.full((5, 3, 6, 4), 0.5)
    start = linf_start(images, EPSILON, torch.Generator().manual_seed(0))
    torch.testing.assert_close((start - images).abs(), torch.full_like(images, EPSILON))
    assert torch.equal(start, start[:, :, :1].expand_as(start))
    assert (start > images).any()
    assert (start < images).any()


def numbers(top, left, signs):
    """Uniform numbers of one image that choose this place (as shares) and these signs."""
    return torch.tensor([[top, left, 0.0, 0.0, 0.0, *[0.9 if s > 0 else 0.1 for s in signs]]])


def test_linf_proposal_by_hand():
    image = torch.full((1, 2, 4, 4), 0.5)
    best = image - EPSILON
    # A window of 2 has three places a side: 0.5 chooses the middle one, 0.99 the last.
    rows, candidate = linf_proposal(image, best, EPSILON, 2, numbers(0.5, 0.99, [1, -1]))
    expected = best.clone()
    expected[0, 0, 1:3, 2:4] = 0.5 + EPSILON
    assert rows.tolist() == [0]
    torch.testing.assert_close(candidate, expected)


def test_linf_proposal_leaves_out_images_that_it_does_not_change():
    image = torch.full((1, 2, 4, 4), 0.5)
    rows, candidate = linf_proposal(image, image - EPSILON, EPSILON, 2, numbers(0.5, 0.5, [-1, -1]))
    assert len(rows) == len(candidate) == 0


def test_bump_of_three_by_hand():
    # Upper part 1x3: ones at first in the middle (1), then everywhere (1/4); lower part 2x3:
    # the lower middle pixel (1), then everything (1/4); each of length 1, then the whole.
    upper = torch.tensor([[0.25, 1.25, 0.25]])
    lower = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    expected = torch.cat([upper / upper.norm(), -lower / lower.norm()])
    torch.testing.assert_close(bump(3), expected / expected.norm())


@pytest.mark.parametrize("size", [4, 8, 9, 28])
def test_l2_starts_and_proposals_keep_to_the_ball(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((6, 2, size, size), generator=generator)
    best = l2_start(images, 1.5, generator)
    assert (best != images).flatten(1).any(1).all()
    for query in range(60):
        window = window_side(20 * query, images.shape, p_init=0.8, norm="l2")
        uniform = torch.rand((6, 7), generator=generator)
        rows, best = l2_proposal(images, best, 1.5, window, uniform)
        assert rows.tolist() == list(range(6))
        assert (best - images).flatten(1).norm(dim=1).max() <= 1.5 + 1e-5
        assert best.min() >= 0
        assert best.max() <= 1


def test_l2_proposal_moves_the_length_from_window_to_window():
    image = torch.full((1, 1, 8, 8), 0.5)
    best = image.clone()
    best[0, 0, :3, :3] += 0.3 * bump(3)
    best[0, 0, 5:, 5:] += 0.4 * bump(3)  # all of 0.5 in two windows
    uniform = torch.tensor([[0.0, 0.0, 0.99, 0.99, 0.0, 0.9]])
    _, candidate = l2_proposal(image, best, 0.5, 3, uniform)
    change = (candidate - image)[0, 0]
    # The first window held the same bump already, and takes over the other's length.
    torch.testing.assert_close(change[:3, :3], 0.5 * bump(3))
    torch.testing.assert_close(change[5:, 5:], torch.zeros(3, 3))


def test_works_on_scores_alone_and_asks_only_about_changed_images():
    weight = np.random.default_rng(0).normal(size=(36, 4)).astype(np.float32)
    asked = []

    def model(images):
        asked.append(images.flatten(1).clone())
        return torch.from_numpy(images.flatten(1).numpy() @ weight)

    images = torch.rand((3, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    asked.clear()
    result = square(model, images, labels, epsilon=0.001, queries=3000)
    assert result.robust.all()
    assert sum(len(a) for a in asked) < 0.8 * 3 * 3000  # half of the single pixels stay
    asked.clear()
    result = square(model, images, labels, epsilon=0.5, queries=300)
    assert not result.robust.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_tried_on_one_image_does_not_depend_on_the_fall_of_others(norm):
    def tried_on_the_dark_image(bright_fall):
        tried = []

        def model(images):
            mean = images.flatten(1).mean(1)
            tried.extend(image.clone() for image in images[mean < 0.5])
            changed = (images - 0.79).flatten(1).abs().amax(1) > 1e-4
            # The lead of class 0: of a dark image 1 - its mean, of a bright one 1 until it changes.
            bright = torch.where(changed, -1.0 if bright_fall else 1.0, 1.0)
            lead = torch.where(mean < 0.5, 1 - mean, bright)
            return torch.stack([lead, torch.zeros_like(lead)], dim=1)

        images = torch.full((2, 1, 5, 5), 0.2)
        images[0] = 0.79
        result = square(model, images, torch.tensor([0, 0]), epsilon=0.1, norm=norm, queries=80)
        assert result.robust.tolist() == [not bright_fall, True]
        return torch.stack(tried)

    assert torch.equal(tried_on_the_dark_image(True), tried_on_the_dark_image(False))
