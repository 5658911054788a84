"""The soft labels that a proxy set starts from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.layout import Flat
from server_toolkit.distill.matching import FlatNetwork
from server_toolkit.distill.segments import Trajectories

LABEL_SMOOTHING = 0.05
CHUNK = 256
LEAST_PROBABILITY = 1e-4  # a class that a teacher rules out can still be learned


def smoothed_labels(hard_labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Return logits `(N, classes)` that give each image's class nearly all probability."""
    smooth = one_hot(torch.from_numpy(hard_labels), classes).float() * (1 - LABEL_SMOOTHING)
    return (smooth + LABEL_SMOOTHING / classes).log()


def teacher_labels(network: FlatNetwork, teachers: Sequence[Flat], images: Tensor) -> Tensor:
    """Return logits `(N, classes)` of the mean of the teachers' probabilities for `images`.

    Several points of one path are an ensemble at no extra training (Guo et al. 2024 average
    experts). Unlike there, an image that a teacher takes for another class keeps that label: what
    does not look like its class should not be called so.
    """
    total = torch.zeros((), device=images.device)
    with torch.no_grad():
        for teacher in teachers:
            flat = torch.from_numpy(teacher).to(images.device)
            parts = [
                network.logits(flat, part).softmax(dim=1) for part in torch.split(images, CHUNK)
            ]
            total = total + torch.cat(parts)
        mean: Tensor = total / len(teachers)
        return mean.clamp_min(LEAST_PROBABILITY).log()


def last_points(trajectories: Trajectories, count: int) -> list[Flat]:
    """Return the fleet's newest `count` weights, fewer where there are not so many."""
    return [trajectories.global_path[t] for t in sorted(trajectories.global_path)[-count:]]
