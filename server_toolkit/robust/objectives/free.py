"""Free adversarial training: one backward pass trains the weights and the attack."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from server_toolkit.robust.objectives.base import GradientRule, Step, Terms


class Free:
    """m steps in a row on the same batch, each with its own backward pass (Shafahi et al. 2019).

    In every step, with the same pass over CE(q, f(clamp(x + δ))): the weights descend by their
    gradient, and δ ← clamp(δ + ε · sign ∇_δ, -ε, ε). δ starts at 0 and lives on from batch to
    batch (their algorithm 1).
    """

    def __init__(self, *, replays: int) -> None:
        self.replays = replays
        self._perturbation: Tensor | None = None

    def step(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        epsilon: float,
        generator: torch.Generator,  # noqa: ARG002
        rule: GradientRule,
    ) -> Step:
        """Return losses and weight gradients, and move δ by the gradient of the same pass."""
        held = self._perturbation
        delta = (torch.zeros_like(images) if held is None else held).clamp(-epsilon, epsilon)
        delta.requires_grad_()

        def loss() -> Terms:
            attacked = cross_entropy(model((images + delta).clamp(0, 1)), labels)
            return Terms(attacked, attacked, None)

        terms, gradients, (ascent,) = rule(loss, model, [delta])
        moved = delta.detach() + epsilon * ascent.sign()
        self._perturbation = moved.clamp(-epsilon, epsilon)
        return Step(terms, gradients)

    def state(self) -> dict[str, Tensor]:
        """Return δ once there is one."""
        return {} if self._perturbation is None else {"perturbation": self._perturbation}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take δ of a `state`, or start without one."""
        self._perturbation = state.get("perturbation")
