"""The trajectory-matching loss and its exact gradient, in the memory of one student step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server_toolkit.distill.augmentation import Transform
from server_toolkit.distill.flat_network import FlatNetwork

__all__ = [
    "FlatNetwork",
    "MatchGradient",
    "Student",
    "match_each",
    "match_gradient",
]


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
    λ_k = ∂L/∂θ_k and u_k = λ_{k+1} + μ u_{k+1}, one step at a time: the derivative of the gradients
    of ℓ along u_k gives the part of images and labels and the Hessian-vector product of
    λ_k = λ_{k+1} − α H_k u_k together (`FlatNetwork.gradient_along`). TESLA (Cui et al. 2023) holds
    θ_k constant there and so drops H_k; this does not.
    """
    student = Student(start, target, batches, augment)
    (match,) = match_each(
        network,
        students=[student],
        images=images,
        label_logits=label_logits,
        step_size=step_size,
        momentum=momentum,
    )
    return match


def match_each(
    network: FlatNetwork,
    *,
    students: Sequence[Student],
    images: Tensor,
    label_logits: Tensor,
    step_size: float,
    momentum: float = 0.0,
    together: bool | None = None,
) -> list[MatchGradient]:
    """Return `match_gradient` of several students of the same images, in their order.

    `together` trains all students whose batches have the same sizes in one, each in a group of
    channels of its own; by default on every device but the CPU, where it is no faster and takes as
    many times the memory. Raises `ValueError` for no students.
    """
    if not students:
        raise ValueError("there are no students to match; give at least one")
    if together is None:
        together = images.device.type not in ("cpu", "meta")
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, student in enumerate(students):
        sizes = tuple(len(batch) for batch in student.batches)
        groups.setdefault(sizes if together else (index,), []).append(index)
    found: dict[int, MatchGradient] = {}
    for indices in groups.values():
        group = [students[index] for index in indices]
        matches = _match_group(network, group, images, label_logits, step_size, momentum)
        found.update(zip(indices, matches, strict=True))
    return [found[index] for index in range(len(students))]


def _match_group(
    network: FlatNetwork,
    students: Sequence[Student],
    images: Tensor,
    label_logits: Tensor,
    step_size: float,
    momentum: float,
) -> list[MatchGradient]:
    """Match S students with equal batch sizes at once; flat weights here are `(S, size)`."""
    steps = list(zip(*(student.steps() for student in students), strict=True))
    start = torch.stack([student.start for student in students])
    target = torch.stack([student.target for student in students])

    path = [start]
    velocity = torch.zeros_like(start)
    for step in steps:
        x = torch.stack([transform(images[batch]) for batch, transform in step])
        z = torch.stack([label_logits[batch] for batch, _ in step])
        velocity = momentum * velocity + network.gradient(path[-1], x, z)
        path.append(path[-1] - step_size * velocity)

    distance = (start - target).square().sum(dim=1)
    error = path[-1] - target
    losses = error.square().sum(dim=1) / distance
    adjoint = 2 * error / distance[:, None]
    carried = torch.zeros_like(adjoint)
    grad_images = images.new_zeros(len(students), *images.shape)
    grad_labels = label_logits.new_zeros(len(students), *label_logits.shape)
    grad_step = images.new_zeros(len(students))
    for step, weights in zip(reversed(steps), reversed(path[:-1]), strict=True):
        leaves = [images[batch].detach().requires_grad_() for batch, _ in step]
        seen = [transform(x) for (_, transform), x in zip(step, leaves, strict=True)]
        z = torch.stack([label_logits[batch] for batch, _ in step])
        carried = adjoint + momentum * carried
        along = network.gradient_along(weights, carried, torch.stack(seen).detach(), z)
        for index, (batch, _) in enumerate(step):
            (pixels,) = torch.autograd.grad(seen[index], leaves[index], along.images[index])
            grad_images[index].index_add_(0, batch, pixels, alpha=-step_size)
            grad_labels[index].index_add_(0, batch, along.label_logits[index], alpha=-step_size)
        grad_step -= along.slope
        adjoint = adjoint - step_size * along.weights
    step_parts = grad_step.tolist()
    return [
        MatchGradient(loss, grad_images[index], grad_labels[index], step_parts[index])
        for index, loss in enumerate(losses.tolist())
    ]
