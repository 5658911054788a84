"""Images of random textures, each of little contrast, in the tones of the data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models import ModelSpec
from server_toolkit.distill.tones import match_tones

Images = npt.NDArray[np.float32]
Fields = npt.NDArray[np.float64]

FLATTEST, STEEPEST = 0.5, 1.5  # amplitude spectra f^-a; photographs have about a = 1
FAINTEST, STRONGEST = 0.05, 0.25  # deviation of an image's brightness from its own mean
TINT = 0.12  # deviation of a channel's mean from the image's
COLOUR = 0.5  # deviation of a channel's own field, as a share of the common one


def random_textures(spec: ModelSpec, count: int, rng: np.random.Generator) -> Images:
    """Return `(count, C, H, W) float32 in [0, 1]`: noise with a natural spectrum, tones matched.

    Every image has a brightness, a tint, a contrast and a spectrum f^-a of its own; the channels
    share most of one Gaussian field. The tones are those of `match_tones` for the mean and
    deviation that the network subtracts and divides by. That noise with the spectra and colours of
    photographs teaches what photographs do is from Baradad et al. 2021.
    """
    channels, side = spec.channels, spec.image_size
    if count == 0:
        return np.empty((0, channels, side, side), np.float32)

    def each(low: float, high: float) -> Fields:
        return rng.uniform(low, high, (count, 1, 1, 1))

    slope = each(FLATTEST, STEEPEST)
    common = _fields((count, 1, side, side), slope, rng)
    own = _fields((count, channels, side, side), slope, rng)
    share = np.abs(rng.normal(0, COLOUR, (count, channels, 1, 1)))
    contrast = np.exp(each(np.log(FAINTEST), np.log(STRONGEST)))
    ground = each(0.1, 0.9) + rng.normal(0, TINT, (count, channels, 1, 1))
    images = np.clip(ground + contrast * (common + share * own), 0, 1).astype(np.float32)
    return match_tones(images, mean=spec.mean, std=spec.std)


def _fields(shape: tuple[int, int, int, int], slope: Fields, rng: np.random.Generator) -> Fields:
    """Return Gaussian fields with amplitudes f^-slope, of mean 0 and deviation 1 each."""
    side = shape[-1]
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * frequency**-slope
    spectrum[..., 0, 0] = 0
    fields = np.fft.irfft2(spectrum, s=(side, side))
    normed: Fields = fields / fields.std(axis=(2, 3), keepdims=True)
    return normed
