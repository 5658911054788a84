"""A batch has synthetic and real images in the share asked for, each with its label."""

import pytest
import torch

from server_toolkit.robust.harden_batches import Batches
from server_toolkit.robust.harden_config import HardenConfig

SYNTHETIC, REAL = 0.25, 0.75
PLAIN = dict(shift_pixels=0, mix_probability=0.0)


def part(count, value, label):
    labels = torch.zeros(count, 2)
    labels[:, label] = 1
    return torch.full((count, 1, 4, 4), value), labels


def batches(synthetic, real, **config):
    own = part(real, REAL, 1) if real else None
    return Batches(*part(synthetic, SYNTHETIC, 0), own, HardenConfig(**{**PLAIN, **config}))


@pytest.mark.parametrize(
    ("synthetic", "real", "times"), [(20, 10, 2), (20, 4, 5), (4, 10, 1), (6, 4, 2)]
)
def test_real_images_are_repeated_to_about_the_number_of_synthetic_ones(synthetic, real, times):
    everything = synthetic + times * real  # one batch as large as the set holds all of it once
    x, q, _ = batches(synthetic, real, batch_size=everything).draw(0)
    assert (x == REAL).all(dim=(1, 2, 3)).sum() == times * real
    assert torch.equal(q[:, 1] == 1, (x == REAL).all(dim=(1, 2, 3)))


def test_without_real_images_the_set_is_taken_as_it_is():
    x, _, _ = batches(6, 0, batch_size=6, real_share=0.5).draw(0)
    assert (x == SYNTHETIC).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("real", [1, 3, 200])
def test_every_batch_has_the_share_of_real_images(share, real):
    source = batches(100, real, batch_size=20, real_share=share)
    for number in range(4):
        x, q, _ = source.draw(number)
        own = (x == REAL).all(dim=(1, 2, 3))
        assert own.sum() == round(20 * share)
        assert torch.equal(q[:, 1] == 1, own)


def test_blending_keeps_the_share_on_average():
    # A blend of a and b with share u has the mean of both pools in the batch's proportion.
    source = batches(100, 10, batch_size=50, real_share=0.2, mix_probability=1.0)
    draws = [source.draw(number) for number in range(200)]
    x, q = torch.cat([draw[0] for draw in draws]), torch.cat([draw[1] for draw in draws])
    expected = 0.2 * REAL + 0.8 * SYNTHETIC
    assert x.mean().item() == pytest.approx(expected, abs=0.01)
    assert torch.allclose(q[:, 1], (x[:, 0, 0, 0] - SYNTHETIC) / (REAL - SYNTHETIC), atol=1e-5)
    crossed = (q[:, 1] > 0.1) & (q[:, 1] < 0.9)  # a real image with a synthetic one
    assert crossed.float().mean() > 0.1


def test_nothing_is_drawn_twice_while_there_are_enough_images():
    images = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 1, 4, 4) / 40
    real = (torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 4, 4) / 10, torch.ones(10, 2) / 2)
    config = HardenConfig(**PLAIN, batch_size=20, real_share=0.5)
    x, _, _ = Batches(images, torch.ones(40, 2) / 2, real, config).draw(3)
    assert len(x[:10, 0, 0, 0].unique()) == 10
    assert len(x[10:, 0, 0, 0].unique()) == 10


def test_a_batch_is_decided_by_its_number_and_the_seed():
    options = dict(batch_size=8, real_share=0.5, mix_probability=0.5, shift_pixels=1, flips=True)
    images, labels = torch.rand(30, 1, 4, 4), torch.rand(30, 2).softmax(1)
    one, again, other = (
        Batches(images, labels, None, HardenConfig(**options, seed=s)) for s in (1, 1, 2)
    )
    assert torch.equal(one.draw(7)[0], again.draw(7)[0])
    assert not torch.equal(one.draw(7)[0], one.draw(8)[0])
    assert not torch.equal(one.draw(7)[0], other.draw(7)[0])
