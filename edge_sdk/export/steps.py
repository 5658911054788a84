"""The functions that become programs: a training step, an attack step and an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edge_sdk.export.blocks import Block, Gradients, QuantizedBlock, Saved


class TrainingStep(nn.Module):
    """Images, label rows and parameters to summed loss, logits and gradients.

    Images `(B, H, W, C)`, label rows `(B, classes)`, one-hot or soft, all zero for padding. Only
    parameters in `names` are taken, and gradients given, in that order. Behind the parameters come
    the ranges `(2,)` of quantized blocks, and behind the gradients what they observed, `(B, 2)`.
    """

    def __init__(self, blocks: Sequence[Block], names: Sequence[str]) -> None:
        super().__init__()
        self.blocks, self.names = blocks, names

    def forward(self, images: Tensor, labels: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Return `(loss (1,), logits (B, classes), *gradients)`."""
        values = dict(zip([*self.names, *ranges_of(self.blocks)], parameters, strict=True))
        loss, logits, gradients, _, saved = _both_ways(self.blocks, images, labels, values)
        observed = [
            block.observed(kept)
            for block, kept in zip(self.blocks, saved, strict=True)
            if isinstance(block, QuantizedBlock)
        ]
        return loss, logits, *(gradients[name] for name in self.names), *observed


class AttackStep(nn.Module):
    """As `TrainingStep`, to summed loss, logits and the loss gradient of the images.

    The export drops the gradients of parameters, which nothing here takes.
    """

    def __init__(self, blocks: Sequence[Block], names: Sequence[str]) -> None:
        super().__init__()
        self.blocks, self.names = blocks, names

    def forward(self, images: Tensor, labels: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Return `(loss (1,), logits (B, classes), gradient (B, H, W, C))`."""
        values = dict(zip(self.names, parameters, strict=True))
        loss, logits, _, d, _ = _both_ways(self.blocks, images, labels, values)
        return loss, logits, d


def ranges_of(blocks: Sequence[Block]) -> list[str]:
    """Return the names of the quantized blocks' ranges, in order."""
    return [block.range for block in blocks if isinstance(block, QuantizedBlock)]


def _both_ways(
    blocks: Sequence[Block], images: Tensor, labels: Tensor, values: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Gradients, Tensor, list[Saved]]:
    """Return loss, logits, gradients by name, the images' gradient and what the blocks kept."""
    x: Tensor = images
    saved: list[Saved] = []
    for block in blocks:
        x, kept = block.forward(x, values)
        saved.append(kept)
    loss, d = torch.ops.trajsyn.softmax_cross_entropy(x, labels)
    gradients: Gradients = {}
    for block, kept in zip(reversed(blocks), reversed(saved), strict=True):
        d, found = block.backward(d, kept, values)
        gradients |= found
    return loss, x, gradients, d, saved


class Evaluation(nn.Module):
    """Images `(B, H, W, C)` and parameters to logits `(B, classes)`."""

    def __init__(self, blocks: Sequence[Block], names: Sequence[str]) -> None:
        super().__init__()
        self.blocks, self.names = blocks, names

    def forward(self, images: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Return the logits."""
        values = dict(zip(self.names, parameters, strict=True))
        x = images
        for block in self.blocks:
            x, _ = block.forward(x, values)
        return (x,)
