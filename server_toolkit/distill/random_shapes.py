"""Images of random shapes in the tones of the data, known from its mean and deviation alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models import ModelSpec

Images = npt.NDArray[np.float32]

FEWEST_SHAPES, MOST_SHAPES = 2, 12  # in an image
SMALLEST_RADIUS, LARGEST_RADIUS = 0.05, 0.4  # of the image's side
FLATTEST_LOG, STEEPEST_LOG = -8.0, 4.0  # of the tone curve's slope
QUANTILES = 4096  # that stand for all values of a channel while its curve is sought


def random_shapes(spec: ModelSpec, count: int, rng: np.random.Generator) -> Images:
    """Return `(count, C, H, W) float32 in [0, 1]`: shapes that hide one another, tones matched.

    The spectrum is that of natural images (dead leaves, Lee et al. 2001); the tones are those of
    `match_tones` for the mean and deviation that the network subtracts and divides by.
    """
    shape = (spec.channels, spec.image_size, spec.image_size)
    if count == 0:
        return np.empty((0, *shape), np.float32)
    leaves = np.stack([_dead_leaves(shape, rng) for _ in range(count)])
    return match_tones(leaves, mean=spec.mean, std=spec.std)


def match_tones(images: Images, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
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


def _dead_leaves(shape: tuple[int, ...], rng: np.random.Generator) -> Images:
    """Return one image of ellipses and boxes, drawn at twice the size so that edges are soft."""
    channels, side, _ = shape
    axis = (np.arange(2 * side) + 0.5) / (2 * side)
    image = np.empty((channels, 2 * side, 2 * side), np.float32)
    image[:] = rng.random((channels, 1, 1)) / 2
    # As many images of few large areas as of many small ones.
    shapes = round(FEWEST_SHAPES * (MOST_SHAPES / FEWEST_SHAPES) ** rng.random())
    for _ in range(shapes):
        # Radii with a heavy tail towards small ones, as in natural scenes.
        radius = SMALLEST_RADIUS * (LARGEST_RADIUS / SMALLEST_RADIUS) ** (rng.random() ** 1.5)
        stretch, angle = np.exp(rng.uniform(-1, 1)), rng.uniform(0, np.pi)
        x, y = (axis - rng.random())[None, :], (axis - rng.random())[:, None]
        along = (x * np.cos(angle) + y * np.sin(angle)) / (radius * stretch)
        across = (y * np.cos(angle) - x * np.sin(angle)) / (radius / stretch)
        if rng.random() < 0.5:
            inside = along**2 + across**2 < 1
        else:
            inside = (np.abs(along) < 1) & (np.abs(across) < 1)
        image[:, inside] = rng.random((channels, 1))
    result: Images = image.reshape(channels, side, 2, side, 2).mean(axis=(2, 4))
    return result
