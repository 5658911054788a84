"""Which layers a training program can hold, and what to put in place of the others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from models.layers import (
    MAX_CHANNELS,
    MAX_FEATURES,
    MAX_KERNEL,
    MAX_POOL,
    AveragePool,
    Convolution,
    InstanceNorm,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    Shape,
)
from models.networks import Normalize

SUPPORTED = (
    "Normalize as the first layer, Conv2d with an odd square kernel, stride 1 and as much padding "
    f"as keeps the size (kernel up to {MAX_KERNEL}), GroupNorm with as many groups as channels, "
    "ReLU, AvgPool2d and MaxPool2d of squares that do not overlap, Flatten and Linear"
)
EPSILON = 1e-5  # of the norms that a description stands for


@dataclass(frozen=True)
class Verdict:
    """What a layer is to a training program.

    `problem` says why it cannot be in one, "" if it can. `layers` are those of a model description
    that stand for it or may replace it, None if none do. `advice` is for the reader.
    """

    problem: str = ""
    layers: tuple[Layer, ...] | None = ()
    advice: str = ""


def judge(layer: nn.Module, shape: Shape, *, first: bool) -> Verdict:
    """Return the verdict on `layer` behind `shape`, `first` if no other layer stands before it."""
    name = type(layer).__name__
    if not type(layer).__module__.startswith(("torch.nn.modules.", Normalize.__module__)):
        if is_parametrized(layer):
            return Verdict("its weight is computed from another", None, "use a plain weight")
        return Verdict(f"{name} is a class of its own", None, f"supported are: {SUPPORTED}")
    if layer._forward_pre_hooks or layer._forward_hooks:
        return Verdict("hooks change what it computes", None, "remove its hooks")
    if isinstance(layer, Normalize):
        if first:
            return Verdict()
        return Verdict("it can only be the first layer", None, "normalise the images, once")
    if isinstance(layer, nn.Linear):
        return _linear(layer, shape)
    if isinstance(layer, nn.ReLU):
        return Verdict(layers=(ReLU(),))
    if isinstance(layer, nn.Flatten):
        if (layer.start_dim, layer.end_dim) == (1, -1):
            return Verdict()
        return Verdict("it keeps a dimension", (), "use Flatten()")
    if isinstance(layer, nn.GroupNorm):
        return _group_norm(layer, shape)
    if len(shape) == 3 and isinstance(layer, nn.Conv2d):
        return _convolution(layer, shape)
    if len(shape) == 3 and isinstance(layer, nn.AvgPool2d | nn.MaxPool2d):
        return _pooling(layer, shape)
    if len(shape) == 3 and isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return _adaptive(layer, shape)
    if isinstance(layer, nn.Identity):
        return Verdict("it does nothing", (), "leave it out")
    if isinstance(layer, nn.InstanceNorm2d):
        if layer.track_running_stats:
            problem = "running statistics are no parameters: nobody averages them"
            return _norm(problem, shape)
        return _norm("it has no block under this name", shape)
    if isinstance(layer, _ACTIVATIONS):
        return Verdict(f"{name} has no block", (ReLU(),), "use ReLU")
    if isinstance(layer, _DROPOUTS):
        return Verdict(
            f"{name} draws random numbers, which a program cannot",
            (),
            "leave it out",
        )
    if isinstance(layer, _BATCH_NORMS):
        return _batch_norm(name, shape)
    if isinstance(layer, nn.LayerNorm | nn.LocalResponseNorm | nn.RMSNorm):
        return _norm(f"{name} has no block", shape)
    if isinstance(layer, nn.Softmax | nn.LogSoftmax | nn.Softmax2d):
        return Verdict("the loss applies the softmax itself", (), "leave it out: give logits")
    return Verdict(f"{name} has no block here", None, f"supported are: {SUPPORTED}")


def _convolution(layer: nn.Conv2d, shape: Shape) -> Verdict:
    kernel, stride = max(layer.kernel_size), max(layer.stride)
    odd = min(kernel + (kernel + 1) % 2, MAX_KERNEL)
    margin = (odd // 2, odd // 2)
    problems, advice = [], []
    if layer.kernel_size != (odd, odd):
        problems.append(f"a kernel of {_times(layer.kernel_size)}")
        advice.append(f"a kernel of {odd}x{odd}")
    if layer.stride != (1, 1):
        problems.append(f"stride {stride}")
        advice.append(f"AvgPool2d({stride}) behind it, which costs {stride**2} times as much here")
    if layer.dilation != (1, 1):
        problems.append("a dilated kernel")
        advice.append("no dilation")
    if layer.groups != 1:
        kind = "depthwise" if layer.groups == layer.in_channels else "grouped"
        problems.append(f"a {kind} convolution")
        advice.append(f"groups=1, which has {layer.groups} times as many weights")
    padding = (0, 0) if layer.padding == "valid" else layer.padding
    if padding not in (margin, "same") and not problems:
        problems.append("a padding that changes the size")
        advice.append(f"padding={odd // 2}, so that the size stays")
    if layer.padding_mode != "zeros" and kernel > 1:
        problems.append(f"{layer.padding_mode} padding")
        advice.append("padding with zeros")
    if layer.out_channels > MAX_CHANNELS:
        problems.append(f"more than {MAX_CHANNELS} outputs")
        advice.append("fewer outputs")
    outputs = min(layer.out_channels, MAX_CHANNELS)
    layers: tuple[Layer, ...] = (
        Convolution(outputs=outputs, kernel=odd, bias=layer.bias is not None),
    )
    if stride > 1:
        layers += _pool(AveragePool, stride, shape)
    return _verdict(problems, layers, advice)


def _group_norm(layer: nn.GroupNorm, shape: Shape) -> Verdict:
    if len(shape) == 1:
        return _norm("a norm of single numbers", shape)
    if layer.num_groups != layer.num_channels:
        return _norm("a norm over several channels", shape)
    if not layer.affine:
        return _norm("a norm without scale and shift", shape)
    if shape[1] * shape[2] == 1:
        return _norm("the norm of a single pixel is always zero", shape)
    note = "" if layer.eps == EPSILON else f"a description has eps={EPSILON:g} here"
    return Verdict(layers=(InstanceNorm(),), advice=note)


def _pooling(layer: nn.AvgPool2d | nn.MaxPool2d, shape: Shape) -> Verdict:
    kind = MaxPool if isinstance(layer, nn.MaxPool2d) else AveragePool
    sides, strides = _pair(layer.kernel_size), _pair(layer.stride)
    size, stride = max(sides), max(strides)
    problems = []
    if strides != sides:
        problems.append(f"squares of {_times(sides)} at a distance of {_times(strides)}")
    elif sides != (size, size):
        problems.append("rectangles")
    if _pair(layer.padding) != (0, 0):
        problems.append("padding")
    if layer.ceil_mode and any(side % size for side in shape[1:]):
        problems.append("ceil_mode: squares that reach over the edge")
    if isinstance(layer, nn.MaxPool2d):
        if _pair(layer.dilation) != (1, 1):
            problems.append("dilation")
        if layer.return_indices:
            problems.append("return_indices")
    elif layer.divisor_override is not None:
        problems.append("divisor_override")
    if size > MAX_POOL:
        problems.append(f"squares of more than {MAX_POOL} pixels")
    layers = _pool(kind, min(stride, MAX_POOL), shape)
    return _verdict(problems, layers, [_pool_advice(type(layer).__name__, layers)])


def _adaptive(layer: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d, shape: Shape) -> Verdict:
    size = layer.output_size
    sides = size if isinstance(size, tuple) else (size, size)
    wanted = max((s or side) for s, side in zip(sides, shape[1:], strict=True))
    kind = MaxPool if isinstance(layer, nn.AdaptiveMaxPool2d) else AveragePool
    layers = _pool(kind, min(shape[1:]) // wanted, shape)
    name = "MaxPool2d" if kind is MaxPool else "AvgPool2d"
    return Verdict("its squares follow the image", layers, _pool_advice(name, layers))


def _linear(layer: nn.Linear, shape: Shape) -> Verdict:
    outputs = min(layer.out_features, MAX_FEATURES)
    layers = (Linear(outputs=outputs, bias=layer.bias is not None),)
    if len(shape) > 1:
        return Verdict("it is applied to rows of pixels", layers, "put Flatten before it")
    if layer.out_features > MAX_FEATURES:
        return Verdict(f"more than {MAX_FEATURES} outputs", layers, "use fewer outputs")
    return Verdict(layers=layers)


_ACTIVATIONS = (
    nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh,
    nn.Softplus, nn.Softsign,
)  # fmt: skip
_DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def _batch_norm(name: str, shape: Shape) -> Verdict:
    return _norm(
        f"{name} mixes the images of a batch: micro-batches would each have their own mean, and "
        "devices with different data no common one",
        shape,
    )


def _norm(problem: str, shape: Shape) -> Verdict:
    if len(shape) == 3 and shape[1] * shape[2] > 1:
        channels = shape[0]
        advice = f"use GroupNorm({channels}, {channels}), each image and channel by itself"
        return Verdict(problem, (InstanceNorm(),), advice)
    return Verdict(problem, (), "leave it out")


def _pool(kind: type[AveragePool] | type[MaxPool], size: int, shape: Shape) -> tuple[Layer, ...]:
    """Return a pool that fits into `shape`, or nothing where there is nothing to pool."""
    fitting = min(size, *shape[1:])
    return (kind(size=fitting),) if fitting > 1 else ()


def _pool_advice(name: str, layers: tuple[Layer, ...]) -> str:
    pools = [layer for layer in layers if isinstance(layer, AveragePool | MaxPool)]
    return f"use {name}({pools[0].size})" if pools else "leave it out: it makes nothing smaller"


def _verdict(problems: list[str], layers: tuple[Layer, ...], advice: list[str]) -> Verdict:
    if not problems:
        return Verdict(layers=layers)
    return Verdict(", ".join(problems), layers, ", ".join(advice))


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _times(sides: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in sides)
