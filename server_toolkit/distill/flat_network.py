"""A network as a function of flat weight vectors: its loss, gradient, and gradient's derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import ModelSpec
from models.layers import Layer
from models.spec import layer_parameters
from server_toolkit.distill.dual_layers import DualPull, dual_layer
from server_toolkit.distill.plain_layers import Pull, plain_layer

# On the CPU images go through the network in parts whose largest activation is at most this: more
# would leave the cache. On other devices they all go together.
CPU_PART_BYTES = 8 << 20


@dataclass(frozen=True)
class Direction:
    """The derivative of S students' losses and their gradients along a direction of the weights.

    `slope` `(S,)` is that of the loss; `weights` `(S, size)`, `images` `(S, N, C, H, W)` and
    `label_logits` `(S, N, classes)` those of its gradients, the first of them the Hessian-vector
    product.
    """

    slope: Tensor
    weights: Tensor
    images: Tensor
    label_logits: Tensor


@dataclass(frozen=True)
class _Slot:
    """A layer and where its weights are in the flat vector."""

    layer: Layer
    shapes: tuple[tuple[int, ...], ...]
    start: int

    def weights(self, flat: Tensor) -> list[Tensor]:
        """Cut `(S, size)` into this layer's `(S, *shape)`."""
        cut, at = [], self.start
        for shape in self.shapes:
            size = math.prod(shape)
            cut.append(flat[:, at : at + size].view(len(flat), *shape))
            at += size
        return cut


class FlatNetwork:
    """`spec`'s network for S students at once, each with flat weights of its own.

    With `product_dtype` (bfloat16), convolutions and matrix products are computed in that; weights,
    norms and sums stay in `dtype`. With `compiled`, torch.compile fuses a step's kernels and, on
    CUDA, replays them as one graph; the first step then takes a minute. `part_bytes` bounds the
    largest activation of the images that are worked on at a time; on the CPU, `CPU_PART_BYTES`
    unless given.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        product_dtype: torch.dtype | None = None,
        compiled: bool = False,
        part_bytes: int | None = None,
    ) -> None:
        if torch.device(device).type == "cpu":
            part_bytes = part_bytes or CPU_PART_BYTES
        self._part_bytes = part_bytes
        self._product_dtype = product_dtype
        self._slots: list[_Slot] = []
        start, self._largest = 0, 1
        for _, layer, before, behind in spec.shapes():
            shapes = tuple(shape for _, shape in layer_parameters(layer, before))
            self._slots.append(_Slot(layer, shapes, start))
            start += sum(math.prod(shape) for shape in shapes)
            self._largest = max(self._largest, math.prod(behind))
        self._mean, self._std = (
            torch.tensor(v).to(device=device, dtype=dtype).view(1, 1, -1, 1, 1)
            for v in (spec.mean, spec.std)
        )
        self._gradient: Callable[..., Tensor] = self._part_gradient
        self._direction: Callable[..., Direction] = self._part_direction
        if compiled:
            options: dict[str, Any] = {"dynamic": False}
            if torch.device(device).type == "cuda":
                options["mode"] = "reduce-overhead"
            self._gradient = torch.compile(self._gradient, **options)
            self._direction = torch.compile(self._direction, **options)

    def logits(self, flat: Tensor, images: Tensor) -> Tensor:
        """Return `(N, classes)` for weights `(size,)` and images `(N, C, H, W)` in [0, 1]."""
        return self._forward(flat[None], images[None])[0][0]

    def gradient(self, weights: Tensor, images: Tensor, label_logits: Tensor) -> Tensor:
        """Return the gradient of each student's loss, `(S, size)`.

        That is the mean cross-entropy against the soft labels softmax(`label_logits`). `weights`
        `(S, size)`, `images` `(S, N, C, H, W)`, `label_logits` `(S, N, classes)`.
        """
        count = images.shape[1]
        total = torch.zeros_like(weights)
        for part in self._parts(images):
            total += self._gradient(weights, images[:, part], label_logits[:, part], count)
        return total

    def gradient_along(
        self, weights: Tensor, direction: Tensor, images: Tensor, label_logits: Tensor
    ) -> Direction:
        """Return d/dε of losses and gradients at `weights` + ε·`direction`, both `(S, size)`.

        One pass forward and one back on dual numbers, about two plain ones' work each.
        """
        count = images.shape[1]
        found = [
            self._direction(weights, direction, images[:, part], label_logits[:, part], count)
            for part in self._parts(images)
        ]
        return Direction(
            slope=sum((one.slope for one in found[1:]), start=found[0].slope),
            weights=sum((one.weights for one in found[1:]), start=found[0].weights),
            images=torch.cat([one.images for one in found], dim=1),
            label_logits=torch.cat([one.label_logits for one in found], dim=1),
        )

    def _parts(self, images: Tensor) -> Iterator[slice]:
        """Cut a batch into parts as even as possible."""
        students, count = images.shape[:2]
        parts = 1
        if self._part_bytes is not None:
            image_bytes = students * self._largest * images.element_size()
            parts = -(-count // max(1, self._part_bytes // image_bytes))
        size = -(-count // parts)
        for start in range(0, count, size):
            yield slice(start, start + size)

    def _inputs(self, images: Tensor) -> Tensor:
        """Normalise, and lay the students side by side: `(S, N, C, H, W)` to `(N, S·C, H, W)`."""
        return ((images - self._mean) / self._std).transpose(0, 1).flatten(1, 2)

    def _forward(self, weights: Tensor, images: Tensor) -> tuple[Tensor, list[Pull]]:
        x = self._inputs(images)
        pulls: list[Pull] = []
        for slot in self._slots:
            x, pull = plain_layer(
                slot.layer,
                x,
                slot.weights(weights),
                len(weights),
                self._product_dtype,
                is_first=not pulls,
            )
            pulls.append(pull)
        return _by_student(x, len(weights)), pulls

    def _part_gradient(
        self, weights: Tensor, images: Tensor, label_logits: Tensor, count: int
    ) -> Tensor:
        logits, pulls = self._forward(weights, images)
        g = (logits.softmax(dim=2) - label_logits.softmax(dim=2)) / count
        g = g.transpose(0, 1).flatten(1)
        gradients: list[Tensor] = []
        for pull in reversed(pulls):
            g, found = pull(g)
            gradients = [v.flatten(1) for v in found] + gradients
        return torch.cat(gradients, dim=1)

    def _part_direction(
        self,
        weights: Tensor,
        direction: Tensor,
        images: Tensor,
        label_logits: Tensor,
        count: int,
    ) -> Direction:
        students = len(weights)
        x = self._inputs(images)
        dx: Tensor | None = None
        pulls: list[DualPull] = []
        for slot in self._slots:
            x, dx, pull = dual_layer(
                slot.layer,
                x,
                dx,
                slot.weights(weights),
                slot.weights(direction),
                students,
                self._product_dtype,
            )
            pulls.append(pull)
        assert dx is not None

        # ℓ = −⟨q, log p⟩ / count with p = softmax(logits), q = softmax(label logits)
        logits, dlogits = _by_student(x, students), _by_student(dx, students)
        p, q = logits.softmax(dim=2), label_logits.softmax(dim=2)
        g = (p - q) / count
        dg = _softmax_tangent(p, dlogits) / count
        slope = (g * dlogits).sum(dim=(1, 2))
        label_part = -_softmax_tangent(q, dlogits) / count

        g, dg = (v.transpose(0, 1).flatten(1) for v in (g, dg))
        gradients: list[Tensor] = []
        for pull in reversed(pulls):
            g, dg, found = pull(g, dg)
            gradients = [v.flatten(1) for v in found] + gradients
        image_part = dg.view(len(dg), students, *images.shape[2:]).transpose(0, 1) / self._std
        return Direction(slope, torch.cat(gradients, dim=1), image_part, label_part)


def _by_student(x: Tensor, students: int) -> Tensor:
    """Map `(N, S·classes)` to `(S, N, classes)`."""
    return x.view(len(x), students, -1).transpose(0, 1)


def _softmax_tangent(p: Tensor, tangent: Tensor) -> Tensor:
    """Return the tangent of p = softmax(a) for that of a."""
    return p * (tangent - (p * tangent).sum(dim=2, keepdim=True))
