"""Images of random shapes in the tones of the data, known from its mean and deviation alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models import ModelSpec
from server_toolkit.distill.tones import match_tones

Images = npt.NDArray[np.float32]

FEWEST_SHAPES, MOST_SHAPES = 2, 12  # in an image
SMALLEST_RADIUS, LARGEST_RADIUS = 0.05, 0.4  # of the image's side


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
