"""The torch module of a description."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models.layers import (
    AveragePool,
    Convolution,
    InstanceNorm,
    Layer,
    Linear,
    MaxPool,
    Shape,
)
from models.layout import Flat, layout_of
from models.spec import ModelSpec


class Normalize(nn.Module):
    """Subtract the mean and divide by the deviation of each channel, `(N, C, H, W)`."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(N, C, H, W)` in [0, 1] to zero mean and unit deviation."""
        return (images - self.mean) / self.std


class Network(nn.Module):
    """A chain of layers from images in [0, 1] to logits.

    Input `(N, channels, image_size, image_size) float32 in [0, 1]`, output `(N, classes)`.
    Normalisation is the first layer, so that attacks and devices work on pixels.
    """

    def __init__(self, spec: ModelSpec, features: nn.Sequential, feature_count: int) -> None:
        super().__init__()
        self.spec = spec
        self.normalize = Normalize(spec.mean, spec.std)
        self.features = features
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(feature_count, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return cast(Tensor, self.classifier(self.flatten(self.features(self.normalize(images)))))

    def layers(self) -> list[tuple[str, nn.Module]]:
        """Return the chain in order, each layer with its name in `named_modules()`."""
        return [
            ("normalize", self.normalize),
            *((f"features.{n}", m) for n, m in self.features.named_children()),
            ("flatten", self.flatten),
            ("classifier", self.classifier),
        ]


def build_model(spec: ModelSpec, *, seed: int | None = None) -> Network:
    """Return `spec`'s network with torch's default initialisation, the same for the same `seed`."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return _build(spec)


def _build(spec: ModelSpec) -> Network:
    features: OrderedDict[str, nn.Module] = OrderedDict()
    *chain, (_, _, before, _) = spec.shapes()
    for name, layer, shape, _ in chain:
        if isinstance(layer, Linear) and len(shape) == 3:
            features["flatten"] = nn.Flatten()
        features[name] = _module(layer, shape)
    return Network(spec, nn.Sequential(features), math.prod(before))


def _module(layer: Layer, before: Shape) -> nn.Module:
    """Return torch's module of a layer behind a shape."""
    if isinstance(layer, Convolution):
        margin = layer.kernel // 2
        return nn.Conv2d(before[0], layer.outputs, layer.kernel, padding=margin, bias=layer.bias)
    if isinstance(layer, InstanceNorm):
        # As many groups as channels: an instance norm with learned scale and shift.
        return nn.GroupNorm(before[0], before[0])
    if isinstance(layer, MaxPool):
        return nn.MaxPool2d(layer.size)
    if isinstance(layer, AveragePool):
        return nn.AvgPool2d(layer.size)
    if isinstance(layer, Linear):
        return nn.Linear(math.prod(before), layer.outputs, bias=layer.bias)
    return nn.ReLU()


def flat_parameters(model: nn.Module) -> Flat:
    """Return a copy of the parameters as one flat float32 vector, in layout order."""
    parts = [p.detach().cpu().float().numpy().ravel() for p in model.parameters()]
    return cast(Flat, np.concatenate(parts))


def load_flat(model: Network, flat: Flat) -> None:
    """Overwrite the model's parameters with `flat`; raises `ValueError` for another layout."""
    arrays = layout_of(model.spec).split(flat)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name].copy()))
