"""Augmentation is an affine map of the pixels, one for all images of a step, and as described."""

import numpy as np
import pytest
import torch

from server_toolkit.distill.augmentation import (
    FAMILIES,
    Augmentation,
    draw_augmentations,
)


def drawn(families, steps=200, seed=0):
    return draw_augmentations(families, steps=steps, rng=np.random.default_rng(seed))


def images(count=2, channels=3, side=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, side, side, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_transform_is_affine_and_the_same_for_all_images(family):
    a, b = images(seed=1), images(seed=2)
    for transform in drawn([family], steps=10):
        mixed = transform(0.3 * a + 0.7 * b)
        torch.testing.assert_close(mixed, 0.3 * transform(a) + 0.7 * transform(b))
        alone = torch.cat([transform(image[None]) for image in a])
        torch.testing.assert_close(transform(a), alone)
        assert transform(a).shape == a.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_changes_images_and_differently_from_step_to_step(family):
    found = [transform(images()) for transform in drawn([family], steps=20)]
    assert any((one - images()).abs().max() > 0.05 for one in found)
    assert any((one - found[0]).abs().max() > 0.05 for one in found)


def test_seed_decides_the_draw():
    assert drawn(FAMILIES) == drawn(FAMILIES)
    assert drawn(FAMILIES) != drawn(FAMILIES, seed=1)


def test_all_families_are_drawn_and_no_other():
    assert {one.family for one in drawn(FAMILIES)} == set(FAMILIES)
    assert {one.family for one in drawn(FAMILIES[1:])} == set(FAMILIES[1:])


def test_flip_mirrors_left_and_right_every_second_time():
    x = images()
    assert torch.equal(Augmentation("flip", (1.0,))(x), x.flip(3))
    assert torch.equal(Augmentation("flip", (0.0,))(x), x)
    share = np.mean([one.parameters[0] for one in drawn(["flip"], steps=500)])
    assert 0.42 < share < 0.58


def test_a_quarter_turn_is_what_rot90_gives():
    x = images()
    turned = Augmentation("rotate", (90.0,))(x)
    torch.testing.assert_close(turned, x.rot90(1, dims=(3, 2)).rot90(2, dims=(2, 3)))


def test_scaling_by_one_and_by_two_about_the_centre():
    x = images()
    torch.testing.assert_close(Augmentation("scale", (1.0, 1.0))(x), x)
    block = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    block[..., 2:6, 2:6] = 1
    larger = Augmentation("scale", (2.0, 1.0))(block)
    assert larger.sum() == pytest.approx(2 * block.sum().item(), rel=0.1)
    assert larger[0, 0, 4, 1] > 0.9  # wider
    assert larger[0, 0, 1, 4] == 0  # no higher


def test_crop_moves_by_whole_pixels_up_to_an_eighth_of_the_side():
    x = images(side=16)
    moved = {
        (down, right)
        for one in drawn(["crop"])
        for down in range(-2, 3)
        for right in range(-2, 3)
        if torch.equal(
            one(x)[:, :, 4:12, 4:12], x[:, :, 4 + down : 12 + down, 4 + right : 12 + right]
        )
    }
    assert len(moved) == 25
    corner = Augmentation("crop", (0.0, 0.0))(x)
    assert corner[:, :, :2].abs().max() == 0
    assert torch.equal(corner[:, :, 2:, 2:], x[:, :, :-2, :-2])


def test_cutout_blacks_out_at_most_a_square_of_half_the_side():
    x = torch.ones(1, 1, 16, 16)
    holes = [int((one(x) == 0).sum()) for one in drawn(["cutout"])]
    assert max(holes) == 64
    assert min(holes) >= 16


def test_color_by_hand():
    x = torch.tensor([0.2, 0.4, 0.9]).view(1, 3, 1, 1)
    # + 0.1: 0.3, 0.5, 1.0; half the distance from their mean 0.6; twice that
    torch.testing.assert_close(
        Augmentation("color", (0.1, 0.5, 2.0))(x).flatten(), torch.tensor([0.3, 0.5, 1.0])
    )
    torch.testing.assert_close(
        Augmentation("color", (0.1, 0.5, 1.0))(x).flatten(), torch.tensor([0.45, 0.55, 0.8])
    )
    grey = images(channels=1)
    torch.testing.assert_close(Augmentation("color", (0.0, 1.7, 1.0))(grey), grey)


@pytest.mark.parametrize("families", [[], ["mirror"]])
def test_refuses_no_family_and_an_unknown_one(families):
    with pytest.raises(ValueError, match="choose from flip, crop"):
        drawn(families)
