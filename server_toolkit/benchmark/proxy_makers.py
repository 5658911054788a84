"""Ways of making images to harden on from what the server saw; a new method adds one here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models import ModelSpec
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.engine import DistillProgress, distill
from server_toolkit.distill.initial_images import ServerSet, initial_images
from server_toolkit.distill.segments import Trajectories


@dataclass(frozen=True, kw_only=True)
class MakerInput:
    """What a maker may use. `tick` has to be called now and then with a text of how it goes."""

    spec: ModelSpec
    config: DistillConfig
    trajectories: Trajectories | None
    server_set: ServerSet | None
    checkpoint: Path
    device: str
    tick: Callable[[str], None]


@dataclass(frozen=True)
class MadeImages:
    """`(N, C, H, W) float32 in [0, 1]`, soft labels `(N, classes) float32`, `(N,) int64` classes.

    `match_loss` is None where nothing was matched.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    hard_labels: npt.NDArray[np.int64]
    match_loss: float | None = None


def make_start(given: MakerInput) -> MadeImages:
    """Return the images that distillation starts from."""
    images, hard_labels = initial_images(
        given.config.start,
        given.spec,
        images_per_class=given.config.images_per_class,
        seed=given.config.seed,
        server_set=given.server_set,
    )
    labels = np.eye(given.spec.classes, dtype=np.float32)[hard_labels]
    return MadeImages(images, labels, hard_labels)


def make_trajsyn(given: MakerInput) -> MadeImages:
    """Return images distilled from the weights' trajectory (`distill`)."""

    def report(state: DistillProgress) -> None:
        given.tick(f"iteration {state.iteration}, match loss {state.match_loss:.3f}")

    assert given.trajectories is not None
    proxy = distill(
        given.trajectories,
        given.spec,
        config=given.config,
        server_set=given.server_set,
        checkpoint=given.checkpoint,
        progress=report,
        device=given.device,
    )
    return MadeImages(
        proxy.images, proxy.labels, proxy.hard_labels, proxy.metadata.get("match_loss")
    )


MAKERS: dict[str, Callable[[MakerInput], MadeImages]] = {
    "start": make_start,
    "trajsyn": make_trajsyn,
}
