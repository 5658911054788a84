"""The trajectory-matching loss and its exact gradient, with the graph of one student step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import log_softmax

from models import ModelSpec
from models.networks import build_model


@dataclass(frozen=True)
class MatchGradient:
    """The matching loss and its gradient; each tensor has the shape of what it belongs to."""

    loss: float
    images: Tensor
    label_logits: Tensor
    step_size: float


class FlatNetwork:
    """A network as a function of one flat parameter vector, differentiable any number of times."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # Only the structure of the module is used; its own parameters never are.
        self._module = build_model(spec, seed=0).to(device=device, dtype=dtype)
        self._names = [name for name, _ in self._module.named_parameters()]
        self._shapes = [p.shape for p in self._module.parameters()]
        self._sizes = [p.numel() for p in self._module.parameters()]

    def logits(self, flat: Tensor, images: Tensor) -> Tensor:
        """Return `(N, classes)` for weights `(size,)` and images `(N, C, H, W)` in [0, 1]."""
        pieces = torch.split(flat, self._sizes)
        weights = {
            name: piece.view(shape)
            for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)
        }
        return cast(Tensor, functional_call(self._module, weights, (images,)))

    def loss(self, flat: Tensor, images: Tensor, label_logits: Tensor) -> Tensor:
        """Return the mean cross-entropy against the soft labels `softmax(label_logits)`."""
        log_probabilities = log_softmax(self.logits(flat, images), dim=1)
        return -(label_logits.softmax(dim=1) * log_probabilities).sum(dim=1).mean()


def match_gradient(
    network: FlatNetwork,
    *,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    label_logits: Tensor,
    step_size: float,
    batches: Sequence[Tensor],
) -> MatchGradient:
    """Differentiate the normalised matching loss of a student that takes `len(batches)` SGD steps.

    L = |θ_K − θ*|² / |θ_0 − θ*|² with θ_{k+1} = θ_k − α ∇_θ ℓ(θ_k, S_k)  (Cazenavette et al. 2022).
    `start` and `target` are flat weights `(size,)`, `images` `(N, C, H, W)` in [0, 1],
    `label_logits` `(N, classes)`; `batches[k]` holds the indices of S_k.

    The forward sweep keeps the K weight vectors, never a graph. The reverse sweep carries
    λ_k = ∂L/∂θ_k and rebuilds one step at a time: the gradient of ⟨λ_{k+1}, ∇_θ ℓ(θ_k, S_k)⟩ gives
    the part of images and labels and the Hessian-vector product of λ_k = λ_{k+1} − α H_k λ_{k+1}
    together. TESLA (Cui et al. 2023) holds θ_k constant there and so drops H_k; this does not.
    """
    path = [start]
    for batch in batches:
        theta = path[-1].detach().requires_grad_()
        loss = network.loss(theta, images[batch], label_logits[batch])
        (gradient,) = torch.autograd.grad(loss, theta)
        path.append(theta.detach() - step_size * gradient)

    distance = (start - target).square().sum()
    error = path[-1] - target
    adjoint = 2 * error / distance
    grad_images = torch.zeros_like(images)
    grad_labels = torch.zeros_like(label_logits)
    grad_step = 0.0
    for batch, theta in zip(reversed(batches), reversed(path[:-1]), strict=True):
        theta = theta.detach().requires_grad_()
        x = images[batch].detach().requires_grad_()
        z = label_logits[batch].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network.loss(theta, x, z), theta, create_graph=True)
        slope = torch.dot(adjoint, gradient)
        hessian_adjoint, slope_x, slope_z = torch.autograd.grad(slope, (theta, x, z))
        grad_images.index_add_(0, batch, slope_x, alpha=-step_size)
        grad_labels.index_add_(0, batch, slope_z, alpha=-step_size)
        grad_step -= slope.item()
        adjoint = adjoint - step_size * hessian_adjoint
    return MatchGradient(
        loss=(error.square().sum() / distance).item(),
        images=grad_images,
        label_logits=grad_labels,
        step_size=grad_step,
    )
