"""Parameters give images in [0, 1], images give parameters, and gradients come back exactly."""

import pytest
import torch

from server_toolkit.distill.parameterisation import SATURATED, Fourier, LowResolution, Pixels

SIDE = 9


def kinds(channels=3, side=SIDE):
    return {
        "pixels": Pixels(),
        "low_resolution": LowResolution(image_size=side, factor=2),
        "fourier": Fourier(image_size=side, channels=channels),
    }


def images(channels=3, side=SIDE):
    g = torch.Generator().manual_seed(0)
    return torch.rand(4, channels, side, side, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", kinds())
def test_whatever_the_parameters_the_pixels_are_in_range(kind, channels):
    form = kinds(channels)[kind]
    parameters = form.initial(images(channels))
    g = torch.Generator().manual_seed(1)
    wild = 3 * torch.randn(parameters.shape, generator=g, dtype=parameters.dtype)
    pixels = form.pixels(wild)
    assert pixels.shape == images(channels).shape
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert pixels.std() > 0.1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("kind", ["pixels", "fourier"])
def test_starts_at_the_images_it_is_given(kind, side, channels):
    form = kinds(channels, side)[kind]
    given = images(channels, side).clamp(SATURATED, 1 - SATURATED)
    torch.testing.assert_close(form.pixels(form.initial(given)), given)


def test_low_resolution_starts_at_smooth_images_and_has_no_fine_detail():
    form = LowResolution(image_size=8, factor=2)
    ramp = (torch.arange(8.0) / 8).expand(1, 1, 8, 8)
    inner = form.pixels(form.initial(ramp))[..., 1:-1]
    torch.testing.assert_close(inner, ramp[..., 1:-1])
    checkers = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(4, 4)[None, None]
    torch.testing.assert_close(form.pixels(form.initial(checkers)), torch.full((1, 1, 8, 8), 0.5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", kinds())
def test_pull_back_is_the_transposed_jacobian(kind, channels):
    form = kinds(channels)[kind]
    parameters = form.initial(0.2 + 0.6 * images(channels))
    g = torch.Generator().manual_seed(2)
    along = torch.randn(parameters.shape, generator=g, dtype=torch.float64)
    weights = torch.randn(images(channels).shape, generator=g, dtype=torch.float64)
    tiny = 1e-6
    ahead, behind = (form.pixels(parameters + sign * tiny * along) for sign in (1, -1))
    slope = ((ahead - behind) / (2 * tiny) * weights).sum()
    got = (form.pull_back(parameters, weights) * along).sum()
    assert got.item() == pytest.approx(slope.item(), rel=1e-6)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("kind", ["pixels", "low_resolution"])
def test_projection_brings_parameters_back_to_where_gradients_reach_them(kind):
    form = kinds()[kind]
    parameters = form.initial(images()) + 0.7
    form.project_(parameters)
    assert parameters.max() == 1
    assert form.pull_back(parameters, torch.ones_like(images())).min() > 0


def test_random_fourier_images_have_the_spectrum_of_natural_ones():
    form = Fourier(image_size=32, channels=1)
    g = torch.Generator().manual_seed(0)
    shape = form.initial(torch.rand(200, 1, 32, 32)).shape
    logits = form.pixels(torch.randn(shape, generator=g)).logit()
    power = torch.fft.fft2(logits).abs().square().mean(dim=(0, 1))[0, 1:16]
    frequency = torch.arange(1, 16).float()
    slope = torch.linalg.lstsq(
        torch.stack([frequency.log(), torch.ones(15)], dim=1), power.log()[:, None]
    ).solution[0]
    assert slope.item() == pytest.approx(-2, abs=0.1)  # amplitude 1/f
    assert logits.sigmoid().std().item() == pytest.approx(0.25, abs=0.02)


def test_random_fourier_colours_lie_along_the_natural_axes():
    form = Fourier(image_size=16, channels=3)
    g = torch.Generator().manual_seed(0)
    shape = form.initial(torch.rand(300, 3, 16, 16)).shape
    logits = form.pixels(torch.randn(shape, generator=g)).logit()
    axes = torch.tensor(Fourier.AXES)
    axes = axes / axes.norm(dim=1, keepdim=True)
    parts = torch.einsum("kc,nchw->knhw", axes, logits).flatten(1)
    deviations = parts.std(dim=1)
    torch.testing.assert_close(
        deviations / deviations[0], torch.tensor(Fourier.DEVIATIONS), rtol=0.1, atol=0
    )
    assert (torch.corrcoef(parts) - torch.eye(3)).abs().max() < 0.1


def test_refuses_a_factor_that_changes_nothing():
    with pytest.raises(ValueError, match="at least 2"):
        LowResolution(image_size=8, factor=1)
