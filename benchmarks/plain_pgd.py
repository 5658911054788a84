"""PGD in the l-inf ball, written once more for the recomputation: no code of the toolkit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from onnx_as_torch import Network
from torch import Tensor
from torch.nn.functional import cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the best wrong class is ahead, summed (Carlini and Wagner 2017)."""
    right = logits.gather(1, labels[:, None])[:, 0]
    return (logits.scatter(1, labels[:, None], -torch.inf).amax(1) - right).sum()


def pgd(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    step: float,
    seed: int,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Return the end points in [0, 1] within `epsilon` of `images`, from a uniform random start."""
    generator = torch.Generator().manual_seed(seed)
    end = images + (torch.rand(images.shape, generator=generator) * 2 - 1) * epsilon
    for _ in range(steps):
        leaf = end.clamp(0, 1).detach().requires_grad_()
        gradient = torch.autograd.grad(loss(network(leaf), labels), leaf)[0]
        moved = leaf.detach() + step * gradient.sign()
        end = images + (moved - images).clamp(-epsilon, epsilon)
    return end.clamp(0, 1)
