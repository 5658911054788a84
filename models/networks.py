"""The torch modules: ConvNet and AlexNet as the dataset-distillation literature uses them."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models.layout import ALEXNET_CONVOLUTIONS, Flat, layout_of
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
        return _convnet(spec) if spec.architecture == "convnet" else _alexnet(spec)


def _convnet(spec: ModelSpec) -> Network:
    """3x3 convolution, instance norm, ReLU, 2x2 average pool, `depth` times (Gidaris & Komodakis).

    GroupNorm with as many groups as channels is an instance norm with learned scale and shift.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = spec.channels
    for block in range(spec.depth):
        layers[f"conv{block}"] = nn.Conv2d(channels, spec.width, 3, padding=1)
        layers[f"norm{block}"] = nn.GroupNorm(spec.width, spec.width)
        layers[f"relu{block}"] = nn.ReLU()
        layers[f"pool{block}"] = nn.AvgPool2d(2)
        channels = spec.width
    return Network(spec, nn.Sequential(layers), channels * (spec.image_size >> spec.depth) ** 2)


def _alexnet(spec: ModelSpec) -> Network:
    """AlexNet for small images (Cazenavette et al. 2022): pools after convolutions 0, 1 and 4."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = spec.channels
    for index, (width, kernel) in enumerate(ALEXNET_CONVOLUTIONS):
        layers[f"conv{index}"] = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
        layers[f"relu{index}"] = nn.ReLU()
        if index in (0, 1, 4):
            layers[f"pool{index}"] = nn.MaxPool2d(2)
        channels = width
    return Network(spec, nn.Sequential(layers), channels * (spec.image_size >> 3) ** 2)


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
