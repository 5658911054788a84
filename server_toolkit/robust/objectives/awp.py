"""AWP: adversarial weight perturbation, on top of any objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server_toolkit.robust.objectives.base import Terms, plain_gradients


@dataclass(frozen=True)
class AdversarialWeights:
    """Gradients at w + v with v_l = γ |w_l| · g_l / |g_l|, g the loss's gradient at w.

    Wu et al. 2020, with one step: the worst weights within γ of each layer, to first
    order. The norms are Frobenius'. Only tensors with two or more axes are moved: as in the
    authors' code, biases and the scales of norms are not. The weights are put back bit for bit; the
    caller's step goes from w. Twice the passes of `plain_gradients`.
    """

    gamma: float

    def __call__(
        self, loss: Callable[[], Terms], model: nn.Module, inputs: Sequence[Tensor] = ()
    ) -> tuple[Terms, list[Tensor], list[Tensor]]:
        """Return the losses and gradients at the perturbed weights."""
        _, ascent, _ = plain_gradients(loss, model)
        parameters = list(model.parameters())
        kept = [parameter.detach().clone() for parameter in parameters]
        try:
            with torch.no_grad():
                for parameter, gradient in zip(parameters, ascent, strict=True):
                    parameter.add_(self.perturbation(parameter, gradient))
            return plain_gradients(loss, model, inputs)
        finally:
            with torch.no_grad():
                for parameter, before in zip(parameters, kept, strict=True):
                    parameter.copy_(before)

    def perturbation(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return v of one tensor: zero for a vector, or where there is no gradient."""
        if weights.ndim < 2:
            return torch.zeros_like(weights)
        length = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
        v: Tensor = self.gamma * weights.norm() * (gradient / length)
        return v
