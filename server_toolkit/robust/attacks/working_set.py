"""The images that still stand, and rows of tensors that are dropped together once they fall."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from server_toolkit.robust.attacks.model import Model, predict
from server_toolkit.robust.attacks.result import AttackResult

State = TypeVar("State", bound=Any)  # a dataclass of tensors with one row an image


class Standing:
    """Which of `N` images still get the right answer, and what turned the others.

    `logits` `(N, classes)` are those of the clean images. Images with a wrong clean answer do not
    stand and stay as they are.
    """

    def __init__(
        self, model: Model, images: Tensor, labels: Tensor, *, batch_size: int | None
    ) -> None:
        self.logits = predict(model, images, batch_size=batch_size)
        self.robust = ~wrong(self.logits, labels)
        self.adversarial = images.clone()
        self.zero_gradient: Tensor | None = None

    def indices(self) -> Tensor:
        """Return the places of the images that stand."""
        return self.robust.nonzero()[:, 0]

    def fell(self, places: Tensor, fell: Tensor, points: Tensor) -> None:
        """Note the `points` that the images at `places` became, those of them that `fell`."""
        self.adversarial[places[fell]] = points[fell]
        self.robust[places[fell]] = False

    def note_zero_gradients(self, places: Tensor, gradient: Tensor) -> None:
        """Note which of the images at `places` have a `gradient` of exactly zero."""
        if self.zero_gradient is None:
            self.zero_gradient = torch.zeros_like(self.robust)
        self.zero_gradient[places] |= (gradient == 0).flatten(1).all(1)

    def result(self) -> AttackResult:
        """Return the outcome."""
        return AttackResult(self.adversarial, self.robust, self.zero_gradient)


def keep(state: State, rows: Tensor) -> State:
    """Return `state` with only these rows (indices or a mask) of each of its tensors."""
    kept: State = replace(state, **{f.name: getattr(state, f.name)[rows] for f in fields(state)})
    return kept


def drop_fallen(state: State, standing: Standing, fell: Tensor, points: Tensor) -> State:
    """Hand the `points` of the rows that `fell` over to `standing`, and return the other rows."""
    if not fell.any():
        return state
    standing.fell(state.place, fell, points)
    return keep(state, ~fell)


def wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `(N,) bool`: the answer is not the label."""
    return logits.argmax(1) != labels


def likeliest_wrong(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the classes `(N, count)` other than the label with the largest logits, in order.

    There are at most `classes - 1` of them.
    """
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def seeded(seed: int) -> torch.Generator:
    """Return a CPU generator, so that a seed means the same draws on every device."""
    return torch.Generator().manual_seed(seed)
