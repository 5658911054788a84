"""Stages in int8, with the ranges of their activations taken from calibration images.

Convolutions are int8 by int8 with one weight scale an output channel (Jacob et al. 2018). What
lies between them, the norm and the average, stays in float: it is cheap there and fragile in
int8. The last layer finds the scale of each row while it runs, so that logits stay float and are
not clipped to what calibration happened to see.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Defines the operators `torch.ops.quantized_decomposed`, which XNNPACK's partitioner looks for.
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.export.inference_stages import Convolution, FlattenLinear, InstanceNorm, Scale

LOW, HIGH = -128, 127
WEIGHT_LIMIT = 127  # symmetric
BATCH = 32

_ops = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Int8Range:
    """The line on which int8 numbers lie: `(q - zero) * scale`."""

    scale: float
    zero: int

    @classmethod
    def covering(cls, low: float, high: float) -> Int8Range:
        """Return the finest range that holds zero exactly, and `low` to `high`."""
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            return cls(1.0, 0)
        zero = round(LOW - low * (HIGH - LOW) / (high - low))
        ends = [end / (limit - zero) for end, limit in ((low, LOW), (high, HIGH)) if limit != zero]
        return cls(max(ends), zero)

    def round(self, x: Tensor) -> Tensor:
        """Return `x` rounded to int8 and back; the compiler keeps what it can in int8."""
        line = (self.scale, self.zero, LOW, HIGH, torch.int8)
        rounded: Tensor = _ops.dequantize_per_tensor(_ops.quantize_per_tensor(x, *line), *line)
        return rounded


class _Int8Weight(nn.Module):
    """A weight with one scale an output channel, its first dimension."""

    values: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        peaks = weight.flatten(1).abs().amax(1)
        scales = torch.where(peaks > 0, peaks / WEIGHT_LIMIT, torch.ones_like(peaks))
        whole = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round()
        self.register_buffer("values", whole.clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT).to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))

    def forward(self) -> Tensor:
        """Return the weight in float."""
        limits = (-WEIGHT_LIMIT, WEIGHT_LIMIT, torch.int8)
        weight: Tensor = _ops.dequantize_per_channel(
            self.values, self.scales, self.zeros, 0, *limits
        )
        return weight


class Int8Convolution(nn.Module):
    """int8 convolution; `before` is None where its input is in int8 already."""

    def __init__(self, stage: Convolution, before: Int8Range | None, after: Int8Range) -> None:
        super().__init__()
        self.stage, self.weight = stage, _Int8Weight(stage.weight)
        del stage.weight  # a buffer of the chain travels in the file, used or not
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """Round, convolve, round."""
        x = x if self.before is None else self.before.round(x)
        return self.after.round(self.stage.convolve(x, self.weight()))


class Int8MaxPool(nn.Module):
    """Maximum of int8 numbers: exact, on the line on which they come."""

    def __init__(self, pool: nn.MaxPool2d, line: Int8Range) -> None:
        super().__init__()
        self.pool, self.line = pool, line

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        return self.line.round(self.pool(x))


class Int8Linear(nn.Module):
    """Flatten and an int8 layer; each row's range is found when it runs."""

    def __init__(self, stage: FlattenLinear) -> None:
        super().__init__()
        self.weight = _Int8Weight(stage.weight)
        self.bias = stage.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, outputs) float32`."""
        rows = x.flatten(1)
        line = (*_ops.choose_qparams_per_token_asymmetric(rows, torch.int8), LOW, HIGH, torch.int8)
        whole = _ops.quantize_per_token(rows, *line)
        rows = _ops.dequantize_per_token(whole, *line, torch.float32)
        return functional.linear(rows, self.weight(), self.bias)


def quantize(stages: Sequence[nn.Module], images: Tensor) -> list[nn.Module]:
    """Return the stages in int8, with ranges of `images` `(N, C, H, W) float32 in [0, 1]`.

    Where an instance norm follows a convolution, its channels are first scaled to the same peak:
    the norm cancels the scale, and every channel gets all of the int8 range.
    """
    chain = copy.deepcopy(list(stages))
    lows, highs = _extremes(chain, images)
    result: list[nn.Module] = []
    line: Int8Range | None = None  # of the current activation, None where it is float
    for index, stage in enumerate(chain):
        if isinstance(stage, Convolution):
            before = _input_range(chain, lows, highs, index) if line is None else None
            following = chain[index + 1] if index + 1 < len(chain) else None
            if isinstance(following, InstanceNorm):
                peaks = torch.maximum(-lows[index], highs[index])
                _equalize(stage, following, peaks)
                line = Int8Range.covering(-1.0, 1.0)
            else:
                line = Int8Range.covering(float(lows[index].min()), float(highs[index].max()))
            result.append(Int8Convolution(stage, before, line))
        elif isinstance(stage, nn.MaxPool2d) and line is not None:
            result.append(Int8MaxPool(stage, line))
        elif isinstance(stage, FlattenLinear):
            result.append(Int8Linear(stage))
        else:
            result.append(stage)
            line = None
    return result


def _extremes(stages: list[nn.Module], images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the least and the largest value of each channel behind each stage."""
    lows, highs = [], []
    for first in range(0, len(images), BATCH):
        x = images[first : first + BATCH]
        for index, stage in enumerate(stages):
            x = stage(x)
            rows = x.transpose(0, 1).flatten(1)
            low, high = rows.amin(1), rows.amax(1)
            if first == 0:
                lows.append(low)
                highs.append(high)
            else:
                lows[index] = torch.minimum(lows[index], low)
                highs[index] = torch.maximum(highs[index], high)
    return lows, highs


def _input_range(
    stages: list[nn.Module], lows: list[Tensor], highs: list[Tensor], index: int
) -> Int8Range:
    previous = stages[index - 1]
    if isinstance(previous, Scale):  # all that pixels can be, whatever was seen
        ends = torch.cat([previous.shift.flatten(), (previous.scale + previous.shift).flatten()])
        return Int8Range.covering(float(ends.min()), float(ends.max()))
    return Int8Range.covering(float(lows[index - 1].min()), float(highs[index - 1].max()))


def _equalize(convolution: Convolution, norm: InstanceNorm, peaks: Tensor) -> None:
    """Scale each output channel to a peak of one; the norm's `eps` follows."""
    peaks = torch.where(peaks > 0, peaks, torch.ones_like(peaks))
    convolution.weight = convolution.weight / peaks.view(-1, 1, 1, 1)
    norm.eps = norm.eps / (peaks * peaks).view(1, -1, 1, 1)
