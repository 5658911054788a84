"""What a proxy set starts from: noise, structured noise, or the server's own real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from models import ModelSpec
from server_toolkit.errors import ConfigError, DistillationError
from server_toolkit.robust.augment import shift

Images = npt.NDArray[np.float32]
StartKind = Literal["noise", "structured", "server_set"]

SHAPES_PER_IMAGE = 12
SMALLEST_RADIUS, LARGEST_RADIUS = 0.05, 0.4  # of the image's side


@dataclass(frozen=True)
class ServerSet:
    """Real images that the server may own: `(N, C, H, W) float32 in [0, 1]`, `(N,) int64`."""

    images: Images
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.float32 or len(self.images) == 0:
            raise ConfigError(f"server set: images are {self.images.shape} {self.images.dtype}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64:
            raise ConfigError(f"server set: labels are {self.labels.shape} {self.labels.dtype}")
        if not (self.images.min() >= 0 and self.images.max() <= 1):
            raise ConfigError("server set: every pixel must be in [0, 1]")


def initial_images(
    start: StartKind,
    spec: ModelSpec,
    *,
    images_per_class: int,
    seed: int,
    server_set: ServerSet | None = None,
) -> tuple[Images, npt.NDArray[np.int64]]:
    """Return `(N, C, H, W) float32 in [0, 1]` and `(N,) int64`, N = classes × images_per_class.

    `noise` is uniform in every pixel; `structured` are random shapes that hide one another, whose
    spectrum is that of natural images (dead leaves, Lee et al. 2001); `server_set` takes that many
    images of each class, and where there are fewer, repeats them moved by a pixel. Sorted by
    class. Raises `DistillationError` for a server set that is missing or lacks a class.
    """
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(spec.classes, dtype=np.int64), images_per_class)
    shape = (len(labels), spec.channels, spec.image_size, spec.image_size)
    if start == "noise":
        return generator.random(shape, np.float32), labels
    if start == "structured":
        return np.stack([_dead_leaves(shape[1:], generator) for _ in labels]), labels
    if start != "server_set":
        raise DistillationError(f"unknown start {start!r}; noise, structured or server_set")
    if server_set is None:
        raise DistillationError(
            "start 'server_set' needs a server set; give one or start elsewhere"
        )
    if server_set.images.shape[1:] != shape[1:]:
        raise DistillationError(
            f"server set: images are {server_set.images.shape[1:]}, the network takes {shape[1:]}"
        )
    chosen = [
        _of_class(server_set, label, images_per_class, generator) for label in range(spec.classes)
    ]
    return np.concatenate(chosen), labels


def _of_class(server_set: ServerSet, label: int, count: int, rng: np.random.Generator) -> Images:
    """Return `count` images of one class, every one once before any is repeated."""
    own = server_set.images[server_set.labels == label]
    if len(own) == 0:
        raise DistillationError(f"the server set has no image of class {label}; add some")
    order = np.concatenate([rng.permutation(len(own)) for _ in range(-(-count // len(own)))])
    picked = torch.from_numpy(own[order[:count]])
    torch_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
    moved = shift(picked[len(own) :], max_pixels=1, generator=torch_rng, fill="edge")
    result: Images = torch.cat([picked[: len(own)], moved]).numpy()
    return result


def _dead_leaves(shape: tuple[int, ...], rng: np.random.Generator) -> Images:
    """Return one image of ellipses and boxes, drawn at twice the size so that edges are soft."""
    channels, side, _ = shape
    axis = (np.arange(2 * side) + 0.5) / (2 * side)
    image = np.empty((channels, 2 * side, 2 * side), np.float32)
    image[:] = rng.random((channels, 1, 1)) / 2
    for _ in range(SHAPES_PER_IMAGE):
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
