"""Tone curves: how bright and how contrasted a set of images is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]

FLATTEST_LOG, STEEPEST_LOG = -8.0, 4.0  # of the tone curve's slope
QUANTILES = 4096  # that stand for all values of a channel while its curve is sought


def match_tones(images: Images, *, mean: Sequence[float], std: Sequence[float]) -> Images:
    """Return images `(N, C, H, W)` whose pixels have this mean and deviation in every channel.

    Each channel's curve is clip(a (u - c) + 1/2, 0, 1), the same for all images; where no slope `a`
    from e^-8 to e^4 reaches the deviation, the nearest does.
    """
    toned = np.empty_like(images)
    for channel in range(images.shape[1]):
        values = images[:, channel]
        slope, centre = _curve(_quantiles(values), mean[channel], std[channel])
        toned[:, channel] = np.clip(slope * (values - centre) + 0.5, 0, 1)
    return toned


def in_tones_of(example: Images, images: Images) -> Images:
    """Return `images` with the mean and deviation of every channel of `example`.

    Distillation greys what is black in its start images, which no match loss minds; a model that
    is hardened on grey grounds meets other images than it was made for.
    """
    channels = np.moveaxis(example, 1, 0).reshape(example.shape[1], -1).astype(np.float64)
    return match_tones(images, mean=channels.mean(1).tolist(), std=channels.std(1).tolist())


def _curve(values: npt.NDArray[np.float64], mean: float, std: float) -> tuple[float, float]:
    """Return slope and centre by bisection: at a fixed mean, steeper curves deviate more."""
    flat, steep = FLATTEST_LOG, STEEPEST_LOG
    slope, centre = 1.0, 0.5
    for _ in range(40):
        slope = float(np.exp((flat + steep) / 2))
        centre = _centre(values, slope, mean)
        if np.clip(slope * (values - centre) + 0.5, 0, 1).std() < std:
            flat = float(np.log(slope))
        else:
            steep = float(np.log(slope))
    return slope, centre


def _centre(values: npt.NDArray[np.float64], slope: float, mean: float) -> float:
    """Return the centre for which the curve's mean is `mean`; the mean falls as it grows."""
    low, high = -0.5 / slope, 1 + 0.5 / slope  # all white, all black
    for _ in range(40):
        centre = (low + high) / 2
        if np.clip(slope * (values - centre) + 0.5, 0, 1).mean() > mean:
            low = centre
        else:
            high = centre
    return (low + high) / 2


def _quantiles(values: Images) -> npt.NDArray[np.float64]:
    ordered = np.sort(values, axis=None).astype(np.float64)
    if len(ordered) <= QUANTILES:
        return ordered
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return ordered[(middles * len(ordered)).astype(np.int64)]
