"""One run of AutoPGD: projected gradient ascent that sets its own step sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from server_toolkit.robust.attacks.geometry import as_column, project, random_start, steepest
from server_toolkit.robust.attacks.model import Model, loss_gradients
from server_toolkit.robust.attacks.result import Norm
from server_toolkit.robust.attacks.working_set import Standing, drop_fallen, wrong

RHO = 0.75  # the share of steps between two checkpoints that must raise the loss
MOMENTUM = 0.75  # the weight of the new step; the last one has the rest

TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps logits `(N, classes)`, labels `(N,)` and targets `(N,)` to losses `(N,)`."""


def checkpoints(steps: int) -> Iterator[int]:
    """Yield after how many steps the step size is looked at: 0.22, 0.41, 0.57, 0.70 ... of all.

    The first gap is 0.22 of all steps; each is 0.03 shorter than the last, and at least 0.06.
    """
    gap, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    done = gap
    while done <= steps:
        yield done
        gap = max(gap - shrink, least)
        done += gap


@dataclass
class _Climbers:
    """One row an image that is still attacked."""

    place: Tensor  # among all images
    image: Tensor
    label: Tensor
    target: Tensor
    current: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor
    rises: Tensor  # how many steps since the last checkpoint raised the loss
    checked_loss: Tensor  # the best loss at the last checkpoint
    halved: Tensor  # whether the step size was halved there
    fell: Tensor  # whether the answer at `current` is wrong


@dataclass(frozen=True)
class Ascent:
    """AutoPGD (Croce & Hein 2020, algorithm 1) in one ball, with one number of steps.

    `generator` is a CPU one and gives the starts.
    """

    model: Model
    epsilon: float
    norm: Norm
    steps: int
    batch_size: int | None
    generator: torch.Generator

    def run(
        self,
        standing: Standing,
        loss: TargetedLoss,
        images: Tensor,
        labels: Tensor,
        targets: Tensor,
    ) -> None:
        """Attack once those of `images` that stand, and note the ones that fell."""
        place = standing.indices()
        if len(place) == 0:
            return
        state = self._start(loss, place, images[place], labels[place], targets[place])
        standing.note_zero_gradients(place, state.gradient)
        state = drop_fallen(state, standing, state.fell, state.current)
        checks = list(checkpoints(self.steps))
        last_check = 0
        for done in range(1, self.steps + 1):
            if len(state.place) == 0:
                return
            self._step(state, momentum=MOMENTUM if done > 1 else 1.0)
            self._look(state, loss)
            state = drop_fallen(state, standing, state.fell, state.current)
            if done in checks:
                _halve_where_stuck(state, gap=done - last_check)
                last_check = done

    def _start(
        self, loss: TargetedLoss, place: Tensor, image: Tensor, label: Tensor, target: Tensor
    ) -> _Climbers:
        start = random_start(image, epsilon=self.epsilon, norm=self.norm, generator=self.generator)
        logits, losses, gradient = loss_gradients(
            self.model, start, loss, label, target, batch_size=self.batch_size
        )
        return _Climbers(
            place=place,
            image=image,
            label=label,
            target=target,
            current=start,
            previous=start,
            gradient=gradient,
            loss=losses,
            best=start,
            best_gradient=gradient,
            best_loss=losses,
            step_size=torch.full_like(losses, 2 * self.epsilon),
            rises=torch.zeros_like(losses),
            checked_loss=losses,
            halved=torch.ones_like(label, dtype=torch.bool),
            fell=wrong(logits, label),
        )

    def _step(self, state: _Climbers, *, momentum: float) -> None:
        """Step along the gradient and back into the ball, part of it replaced by the last step."""
        size = as_column(state.step_size, state.image)
        plain = self._inside(state.current + size * steepest(state.gradient, self.norm), state)
        mixed = state.current + momentum * (plain - state.current)
        mixed += (1 - momentum) * (state.current - state.previous)
        state.previous, state.current = state.current, self._inside(mixed, state)

    def _inside(self, points: Tensor, state: _Climbers) -> Tensor:
        return project(points, state.image, epsilon=self.epsilon, norm=self.norm)

    def _look(self, state: _Climbers, loss: TargetedLoss) -> None:
        """Evaluate the new points and remember what is best of them."""
        logits, losses, gradient = loss_gradients(
            self.model, state.current, loss, state.label, state.target, batch_size=self.batch_size
        )
        state.rises = state.rises + (losses > state.loss)
        state.loss, state.gradient = losses, gradient
        state.best, state.best_gradient, state.best_loss = _choose(
            losses > state.best_loss,
            (state.current, gradient, losses),
            (state.best, state.best_gradient, state.best_loss),
        )
        state.fell = wrong(logits, state.label)


def _halve_where_stuck(state: _Climbers, *, gap: int) -> None:
    """Halve the step sizes of rows that no longer advance, and take these back to their best.

    Stuck means that no more than RHO of the steps raised the loss, or that the step size stayed at
    the last checkpoint and the best loss has not risen since.
    """
    rarely = state.rises <= RHO * gap
    at_rest = ~state.halved & (state.checked_loss >= state.best_loss)
    stuck = rarely | at_rest
    state.step_size = torch.where(stuck, state.step_size / 2, state.step_size)
    state.current, state.gradient = _choose(
        stuck, (state.best, state.best_gradient), (state.current, state.gradient)
    )
    state.halved, state.checked_loss = stuck, state.best_loss
    state.rises = torch.zeros_like(state.rises)


def _choose(
    rows: Tensor, these: tuple[Tensor, ...], those: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return `these` in the rows of the mask and `those` elsewhere."""
    return tuple(torch.where(as_column(rows, a), a, b) for a, b in zip(these, those, strict=True))
