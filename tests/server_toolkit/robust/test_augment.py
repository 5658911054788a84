"""Shifts move whole images by whole pixels."""

import pytest
import torch
from torch.nn.functional import pad

from server_toolkit.robust.augment import flip, shift


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("edge", "replicate")])
def test_every_result_is_a_crop_of_the_padded_image(fill, mode):
    x = torch.rand(30, 2, 5, 5)
    out = shift(x, max_pixels=1, generator=torch.Generator().manual_seed(0), fill=fill)
    padded = pad(x, (1, 1, 1, 1), mode=mode)
    offsets = []
    for original, moved in zip(padded, out, strict=True):
        crops = {(r, c): original[:, r : r + 5, c : c + 5] for r in range(3) for c in range(3)}
        found = [at for at, crop in crops.items() if torch.equal(crop, moved)]
        assert found
        offsets.extend(found)
    assert len(set(offsets)) > 4  # images move independently


def test_zero_pixels_change_nothing():
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(shift(x, max_pixels=0, generator=torch.Generator()), x)


def test_unknown_fill_is_refused():
    with pytest.raises(ValueError, match="mirror"):
        shift(torch.rand(1, 1, 4, 4), max_pixels=1, generator=torch.Generator(), fill="mirror")


def test_flip_mirrors_about_half_of_the_images():
    x = torch.rand(200, 1, 2, 3)
    out = flip(x, generator=torch.Generator().manual_seed(0))
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 60 < mirrored.sum() < 140
