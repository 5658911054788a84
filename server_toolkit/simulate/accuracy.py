"""How many test images the federated model gets right."""

from __future__ import annotations

import torch

from edge_sdk.training.dataset import Dataset
from models import ModelSpec
from models.layout import Flat
from models.networks import build_model, load_flat

BATCH = 256


def accuracy(spec: ModelSpec, weights: Flat, dataset: Dataset, *, device: str) -> float:
    """Return the share of `dataset`'s images that the flat weights classify as labelled."""
    model = build_model(spec, seed=0)
    load_flat(model, weights)
    model.to(device)
    right = 0
    for first in range(0, len(dataset), BATCH):
        part = slice(first, first + BATCH)
        images = torch.from_numpy(dataset.pixels[part]).to(device).float() / float(dataset.white)
        with torch.no_grad():
            found = model(images).argmax(1).cpu()
        right += int((found == torch.from_numpy(dataset.labels[part])).sum())
    return right / len(dataset)
