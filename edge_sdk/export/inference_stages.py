"""A trained network as a chain of stages, each of operations that XNNPACK has a kernel for.

Activations are `(N, C, H, W)`, the program's images `(N, H, W, C)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.errors import UnsupportedLayerError
from models.networks import Network, Normalize

SUPPORTED = (
    "Normalize first, Conv2d without groups and padded with zeros, GroupNorm with as many groups "
    "as channels, ReLU, AvgPool2d and MaxPool2d without padding, Flatten and Linear"
)
SMALLEST_SCALE = 1e-6  # of a norm; below it a channel is its shift and nothing else


class Chain(nn.Module):
    """Stages in a row, from images `(N, H, W, C) float32 in [0, 1]` to logits `(N, classes)`."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = images.permute(0, 3, 1, 2)
        for stage in self.stages:
            x = stage(x)
        return x


class Scale(nn.Module):
    """`(x - mean) / std` for each channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: Normalize) -> None:
        super().__init__()
        self.register_buffer("scale", 1 / layer.std)
        self.register_buffer("shift", -layer.mean / layer.std)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels to zero mean and unit deviation."""
        return x * self.scale + self.shift


class Convolution(nn.Module):
    """Convolution, and the ReLU that follows it if there is one."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, *, bias: bool, relu: bool) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().clone())
        kept = layer.bias.detach().clone() if bias and layer.bias is not None else None
        self.register_buffer("bias", kept)
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.convolve(x, self.weight)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve with another weight."""
        y = functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)
        return torch.relu(y) if self.relu else y


class InstanceNorm(nn.Module):
    """Each channel of each image for itself; XNNPACK has no kernel for a whole norm.

    `eps` is one number a channel, so that a channel may be scaled without changing the result.
    """

    scale: Tensor
    shift: Tensor
    eps: Tensor

    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__()
        shape = (1, layer.num_channels, 1, 1)
        self.register_buffer("scale", layer.weight.detach().clone().view(shape))
        self.register_buffer("shift", layer.bias.detach().clone().view(shape))
        self.register_buffer("eps", torch.full(shape, layer.eps))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over height and width, then scale and shift."""
        centred = x - x.mean((2, 3), keepdim=True)
        variance = (centred * centred).mean((2, 3), keepdim=True)
        return centred * (torch.rsqrt(variance + self.eps) * self.scale) + self.shift


class NormReluPool(InstanceNorm):
    """Instance norm, ReLU and average pool, with the norm's scale applied to the small result.

    Needs a positive scale a: relu(a x) = a relu(x), so one pass over the large tensor is saved.
    """

    def __init__(self, layer: nn.GroupNorm, pool: nn.AvgPool2d) -> None:
        super().__init__(layer)
        self.scale = self.scale.abs().clamp(min=SMALLEST_SCALE)
        self.shift = self.shift / self.scale
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, clip and pool."""
        centred = x - x.mean((2, 3), keepdim=True)
        variance = (centred * centred).mean((2, 3), keepdim=True) + self.eps
        inverse = torch.rsqrt(variance)
        clipped = torch.relu(centred + self.shift * (variance * inverse))
        pooled: Tensor = self.pool(clipped)
        return pooled * (self.scale * inverse)


class FlattenLinear(nn.Module):
    """Flatten and a fully connected layer."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().clone())
        kept = None if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", kept)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, outputs)`."""
        return functional.linear(x.flatten(1), self.weight, self.bias)


def stages_of(network: Network) -> list[nn.Module]:
    """Return the network's stages; raises `UnsupportedLayerError` naming the layer.

    A convolution's bias is left out where an instance norm behind it cancels it. Its sign is
    turned where the norm's scale is negative, as `NormReluPool` needs it.
    """
    layers = network.layers()
    stages: list[nn.Module] = []
    index = 0
    while index < len(layers):
        name, layer = layers[index]
        following = layers[index + 1][1] if index + 1 < len(layers) else None
        used = 1
        if isinstance(layer, Normalize) and index == 0:
            stages.append(Scale(layer))
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and _pads_with_zeros(layer):
            relu = isinstance(following, nn.ReLU)
            stages.append(Convolution(layer, bias=not _is_instance_norm(following), relu=relu))
            used += relu
        elif isinstance(layer, nn.GroupNorm) and _can_merge(layers, index):
            convolution, pool = stages[-1], layers[index + 2][1]
            assert isinstance(convolution, Convolution)
            assert isinstance(pool, nn.AvgPool2d)
            sign = torch.where(layer.weight.detach() < 0, -1.0, 1.0)
            convolution.weight = convolution.weight * sign.view(-1, 1, 1, 1)
            stages.append(NormReluPool(layer, pool))
            used = 3
        elif isinstance(layer, nn.GroupNorm) and _is_instance_norm(layer):
            stages.append(InstanceNorm(layer))
        elif isinstance(layer, nn.ReLU) or _is_plain_pool(layer):
            stages.append(layer)
        elif isinstance(layer, nn.Linear):
            stages.append(FlattenLinear(layer))
        elif isinstance(layer, nn.Flatten) and isinstance(following, nn.Flatten | nn.Linear):
            pass  # left to the linear layer
        else:
            raise _unsupported(name, layer)
        index += used
    return stages


def _pads_with_zeros(layer: nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _is_instance_norm(layer: nn.Module | None) -> bool:
    return (
        isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels and layer.affine
    )


def _can_merge(layers: list[tuple[str, nn.Module]], index: int) -> bool:
    """Say whether convolution, instance norm, ReLU and average pool lie around `index`."""
    kinds = [type(layer) for _, layer in layers[index - 1 : index + 3]]
    return (
        kinds == [nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.AvgPool2d]
        and _is_instance_norm(layers[index][1])
        and _is_plain_pool(layers[index + 2][1])
    )


def _is_plain_pool(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.AvgPool2d | nn.MaxPool2d) or layer.ceil_mode:
        return False
    if isinstance(layer, nn.AvgPool2d):
        return layer.padding in (0, (0, 0)) and layer.divisor_override is None
    return layer.padding in (0, (0, 0)) and layer.dilation in (1, (1, 1))


def _unsupported(name: str, layer: nn.Module) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"layer {name}, {layer}, cannot be in an inference program; supported are: {SUPPORTED}"
    )
