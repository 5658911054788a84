"""What a proxy set starts from: noise, shapes, textures, or the server's own real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models import ModelSpec
from server_toolkit.distill.random_shapes import random_shapes
from server_toolkit.distill.random_textures import random_textures
from server_toolkit.distill.start_kinds import StartKind, start_kinds
from server_toolkit.errors import ConfigError, DistillationError
from server_toolkit.robust.augment import shift

Images = npt.NDArray[np.float32]

BLENDS_MOVE_PIXELS = 3


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

    `noise` is uniform in every pixel; `shapes` and `textures` are random ones in the tones of the
    data (see `random_shapes`, `random_textures`), `structured` the former where there is one
    channel and the latter where there are more; `server_set` takes that many images of each class,
    and where there are fewer, repeats them moved by a pixel; `server_blends` blends two images of
    the class, each moved. Kinds joined by "+" share each class's images evenly, the first kinds
    taking what is left over. Sorted by class. Raises `DistillationError` for a server set that is
    missing or lacks a class, `ConfigError` for an unknown start.
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
    if kind == "structured":  # grey data are often drawn things, colour data photographs
        kind = "shapes" if spec.channels == 1 else "textures"
    if kind == "shapes":
        return random_shapes(spec, count, generator)
    if kind == "textures":
        return random_textures(spec, count, generator)
    if server_set is None:
        raise DistillationError(f"start {kind!r} needs a server set; give one or start elsewhere")
    if server_set.images.shape[1:] != shape[1:]:
        raise DistillationError(
            f"server set: images are {server_set.images.shape[1:]}, the network takes {shape[1:]}"
        )
    of_class = _blends if kind == "server_blends" else _copies
    return np.concatenate(
        [
            of_class(_own(server_set, label), images_per_class, generator)
            for label in range(spec.classes)
        ]
    )


def _own(server_set: ServerSet, label: int) -> Images:
    own: Images = server_set.images[server_set.labels == label]
    if len(own) == 0:
        raise DistillationError(f"the server set has no image of class {label}; add some")
    return own


def _copies(own: Images, count: int, rng: np.random.Generator) -> Images:
    """Return `count` images of one class, every one once before any is repeated."""
    order = np.concatenate([rng.permutation(len(own)) for _ in range(-(-count // len(own)))])
    picked = own[order[:count]]
    copies: Images = np.concatenate([picked[: len(own)], _moved(picked[len(own) :], 1, rng)])
    return copies


def _blends(own: Images, count: int, rng: np.random.Generator) -> Images:
    """Return `count` blends of two images of one class, the first at least as visible."""
    first, second = (
        _moved(own[rng.integers(len(own), size=count)], BLENDS_MOVE_PIXELS, rng) for _ in range(2)
    )
    share = rng.uniform(0.5, 1, (count, 1, 1, 1)).astype(np.float32)
    blended: Images = share * first + (1 - share) * second
    return blended


def _moved(images: Images, pixels: int, rng: np.random.Generator) -> Images:
    torch_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
    moved: Images = shift(
        torch.from_numpy(images), max_pixels=pixels, generator=torch_rng, fill="edge"
    ).numpy()
    return moved
