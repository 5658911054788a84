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
from server_toolkit.distill.augmentation import Transform


@dataclass(frozen=True)
class MatchGradient:
    """The matching loss and its gradient; each tensor has the shape of what it belongs to."""

    loss: float
    images: Tensor
    label_logits: Tensor
    step_size: float


@dataclass(frozen=True)
class Student:
    """Where a student starts, where it should land, and what it sees on the way.

    `start` and `target` are flat weights `(size,)`. `batches[k]` holds the indices of the images of
    step k, and `augment[k]` maps these images to what the network sees (see
    `draw_augmentations`).
    """

    start: Tensor
    target: Tensor
    batches: Sequence[Tensor]
    augment: Sequence[Transform] | None = None

    def __post_init__(self) -> None:
        if self.augment is not None and len(self.augment) != len(self.batches):
            raise ValueError(
                f"{len(self.augment)} transforms for {len(self.batches)} steps; give one a step"
            )

    def steps(self) -> list[tuple[Tensor, Transform]]:
        """Return the batch and the transform of every step."""
        transforms = self.augment or [_unchanged] * len(self.batches)
        return list(zip(self.batches, transforms, strict=True))


def _unchanged(images: Tensor) -> Tensor:
    return images


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
    augment: Sequence[Transform] | None = None,
    momentum: float = 0.0,
) -> MatchGradient:
    """Differentiate the normalised matching loss of a student that takes `len(batches)` SGD steps.

    L = |θ_K − θ*|² / |θ_0 − θ*|² with v_{k+1} = μ v_k + ∇_θ ℓ(θ_k, S_k), v_0 = 0 and
    θ_{k+1} = θ_k − α v_{k+1}  (Cazenavette et al. 2022; μ is their 0). `start` and `target` are
    flat weights `(size,)`, `images` `(N, C, H, W)` in [0, 1], `label_logits` `(N, classes)`;
    `batches[k]` holds the indices of S_k, `augment[k]` what its images go through.

    The forward sweep keeps the K weight vectors, never a graph. The reverse sweep carries
    λ_k = ∂L/∂θ_k and u_k = λ_{k+1} + μ u_{k+1} and rebuilds one step at a time: the gradient of
    ⟨u_k, ∇_θ ℓ(θ_k, S_k)⟩ gives the part of images and labels and the Hessian-vector product of
    λ_k = λ_{k+1} − α H_k u_k together. TESLA (Cui et al. 2023) holds θ_k constant there and so
    drops H_k; this does not.
    """
    student = Student(start, target, batches, augment)
    return match_gradients(
        network,
        students=[student],
        images=images,
        label_logits=label_logits,
        step_size=step_size,
        momentum=momentum,
    )


def match_gradients(
    network: FlatNetwork,
    *,
    students: Sequence[Student],
    images: Tensor,
    label_logits: Tensor,
    step_size: float,
    momentum: float = 0.0,
) -> MatchGradient:
    """Return the mean of `match_gradient` over several students of the same images."""
    parts = [
        _one_student(network, student, images, label_logits, step_size, momentum)
        for student in students
    ]
    count = len(parts)
    return MatchGradient(
        loss=sum(part.loss for part in parts) / count,
        images=torch.stack([part.images for part in parts]).mean(dim=0),
        label_logits=torch.stack([part.label_logits for part in parts]).mean(dim=0),
        step_size=sum(part.step_size for part in parts) / count,
    )


def _one_student(
    network: FlatNetwork,
    student: Student,
    images: Tensor,
    label_logits: Tensor,
    step_size: float,
    momentum: float,
) -> MatchGradient:
    steps = student.steps()
    path = [student.start]
    velocity = torch.zeros_like(student.start)
    for batch, transform in steps:
        theta = path[-1].detach().requires_grad_()
        loss = network.loss(theta, transform(images[batch]), label_logits[batch])
        (gradient,) = torch.autograd.grad(loss, theta)
        velocity = momentum * velocity + gradient
        path.append(theta.detach() - step_size * velocity)

    distance = (student.start - student.target).square().sum()
    error = path[-1] - student.target
    adjoint = 2 * error / distance
    carried = torch.zeros_like(adjoint)
    grad_images = torch.zeros_like(images)
    grad_labels = torch.zeros_like(label_logits)
    grad_step = 0.0
    for (batch, transform), theta in zip(reversed(steps), reversed(path[:-1]), strict=True):
        theta = theta.detach().requires_grad_()
        x = images[batch].detach().requires_grad_()
        z = label_logits[batch].detach().requires_grad_()
        loss = network.loss(theta, transform(x), z)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        carried = adjoint + momentum * carried
        slope = torch.dot(carried, gradient)
        hessian_carried, slope_x, slope_z = torch.autograd.grad(slope, (theta, x, z))
        grad_images.index_add_(0, batch, slope_x, alpha=-step_size)
        grad_labels.index_add_(0, batch, slope_z, alpha=-step_size)
        grad_step -= slope.item()
        adjoint = adjoint - step_size * hessian_carried
    return MatchGradient(
        loss=(error.square().sum() / distance).item(),
        images=grad_images,
        label_logits=grad_labels,
        step_size=grad_step,
    )
