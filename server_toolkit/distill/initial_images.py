"""What a proxy set starts from: noise, structured noise, or the server's own real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models import ModelSpec
from server_toolkit.distill.start_kinds import StartKind, start_kinds
from server_toolkit.errors import ConfigError, DistillationError
from server_toolkit.robust.augment import shift

Images = npt.NDArray[np.float32]

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
    start: str,
    spec: ModelSpec,
    *,
    images_per_class: int,
    seed: int,
    server_set: ServerSet | None = None,
) -> tuple[Images, npt.NDArray[np.int64]]:
    """Return `(N, C, H, W) float32 in [0, 1]` and `(N,) int64`, N = classes × images_per_class.

    `noise` is uniform in every pixel; `structured` are random shapes that hide one another, whose
    spectrum is that of natural images (dead leaves, Lee et al. 2001); `server_set` takes that many
    images of each class, and where there are fewer, repeats them moved by a pixel. Kinds joined by
    "+" share each class's images evenly, the first kinds taking what is left over. Sorted by class.
    Raises `DistillationError` for a server set that is missing or lacks a class, `ConfigError` for
    an unknown start.
    """
    generator = np.random.default_rng(seed)
    kinds = start_kinds(start)
    shares = [len(part) for part in np.array_split(np.arange(images_per_class), len(kinds))]
    parts = [
        _of_kind(kind, spec, count, generator, server_set).reshape(
            spec.classes, count, spec.channels, spec.image_size, spec.image_size
        )
        for kind, count in zip(kinds, shares, strict=True)
    ]
    images = np.concatenate(parts, axis=1)
    labels = np.repeat(np.arange(spec.classes, dtype=np.int64), images_per_class)
    return images.reshape(-1, *images.shape[2:]), labels


def _of_kind(
    kind: StartKind,
    spec: ModelSpec,
    images_per_class: int,
    generator: np.random.Generator,
    server_set: ServerSet | None,
) -> Images:
    """Return `(classes * images_per_class, C, H, W)` of one kind, sorted by class."""
    count = spec.classes * images_per_class
    shape = (count, spec.channels, spec.image_size, spec.image_size)
    if kind == "noise":
        return generator.random(shape, np.float32)
    if kind == "structured":
        leaves = [_dead_leaves(shape[1:], generator) for _ in range(count)]
        return np.stack(leaves) if leaves else np.empty(shape, np.float32)
    if server_set is None:
        raise DistillationError(
            "start 'server_set' needs a server set; give one or start elsewhere"
        )
    if server_set.images.shape[1:] != shape[1:]:
        raise DistillationError(
            f"server set: images are {server_set.images.shape[1:]}, the network takes {shape[1:]}"
        )
    return np.concatenate(
        [_of_class(server_set, label, images_per_class, generator) for label in range(spec.classes)]
    )


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
