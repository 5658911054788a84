"""What every objective is: an attack, a loss, and the gradients of one training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from server_toolkit.robust.objectives.inner import Ascent


class Terms(NamedTuple):
    """A batch's losses, means over its images.

    `total` is what is minimised; `adversarial` and `clean` are its terms on attacked and on clean
    images, before their weights, the latter `None` where the method has none.
    """

    total: Tensor
    adversarial: Tensor
    clean: Tensor | None


class Step(NamedTuple):
    """The losses of a step, and the gradients by the network's parameters in their order."""

    terms: Terms
    gradients: list[Tensor]


class GradientRule(Protocol):
    """How a loss becomes gradients: as it stands (`plain_gradients`), or at perturbed weights."""

    def __call__(
        self, loss: Callable[[], Terms], model: nn.Module, inputs: Sequence[Tensor] = ()
    ) -> tuple[Terms, list[Tensor], list[Tensor]]:
        """Return the losses and the gradients by parameters and by `inputs`."""
        ...


def plain_gradients(
    loss: Callable[[], Terms], model: nn.Module, inputs: Sequence[Tensor] = ()
) -> tuple[Terms, list[Tensor], list[Tensor]]:
    """Return the losses and their gradients by the parameters and by `inputs`."""
    terms = loss()
    parameters = list(model.parameters())
    gradients = list(torch.autograd.grad(terms.total, [*parameters, *inputs]))
    return terms, gradients[: len(parameters)], gradients[len(parameters) :]


class Objective(Protocol):
    """A method of adversarial training, as the training loop sees it."""

    replays: int
    """How many steps in a row train on the same batch."""

    def step(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        epsilon: float,
        generator: torch.Generator,
        rule: GradientRule,
    ) -> Step:
        """Return losses and gradients on `images` `(N, C, H, W)` labelled `(N, classes)`."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what must be kept from step to step, by name."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a `state`; raises `KeyError` or `RuntimeError` for another objective's."""
        ...


@dataclass(frozen=True)
class AttackThenTrain(ABC):
    """An objective that attacks the batch, then takes one gradient; it keeps nothing."""

    inner: Ascent

    replays = 1

    def attack(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        epsilon: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return x' = argmax CE(q, f(x')) by PGD from a uniform start."""
        return self.inner.from_uniform(model, images, labels, epsilon=epsilon, generator=generator)

    @abstractmethod
    def loss(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> Terms:
        """Return the losses for clean images x, their x' and labels q."""

    def step(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        epsilon: float,
        generator: torch.Generator,
        rule: GradientRule,
    ) -> Step:
        """Attack, then differentiate the loss."""
        adversarial = self.attack(model, images, labels, epsilon=epsilon, generator=generator)
        terms, gradients, _ = rule(lambda: self.loss(model, images, adversarial, labels), model)
        return Step(terms, gradients)

    def state(self) -> dict[str, Tensor]:
        """Return nothing: every step begins anew."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take an empty state."""
        if state:
            raise KeyError(f"{type(self).__name__} has no {', '.join(state)}")


def log_probabilities_of_both(
    model: nn.Module, adversarial: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log f(x') and log f(x) `(N, classes)` of one forward pass."""
    log_p = log_softmax(model(torch.cat([adversarial, images])), dim=1)
    return log_p[: len(images)], log_p[len(images) :]
