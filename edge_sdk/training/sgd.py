"""Stochastic gradient descent in place on numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_sdk.runtime.sgd_step import sgd_step

Float32 = npt.NDArray[np.float32]


class SGD:
    """torch.optim.SGD without dampening and Nesterov, with FedProx's and SCAFFOLD's terms.

    d = gradient + weight_decay * w + proximal_mu * (w - w_start) + correction;
    v = momentum * v + d; w -= learning_rate * v. The start is where `weights` are when this is
    made; they are updated in place.
    """

    def __init__(
        self,
        weights: Sequence[Float32],
        *,
        learning_rate: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        proximal_mu: float = 0.0,
        correction: Sequence[Float32] | None = None,
    ) -> None:
        self._weights, self._rate = weights, learning_rate
        self._momentum, self._decay, self._mu = momentum, weight_decay, proximal_mu
        self._start = [w.copy() if proximal_mu else None for w in weights]
        self._correction = [None] * len(weights) if correction is None else correction
        self._velocity = [np.zeros_like(w) if momentum else None for w in weights]

    def step(self, sums: Sequence[Float32], *, scale: float) -> None:
        """Take one step along the gradients `sums * scale`; `sums` is left zero."""
        for w, gradient, velocity, start, correction in zip(
            self._weights, sums, self._velocity, self._start, self._correction, strict=True
        ):
            if correction is not None:
                gradient += correction * np.float32(1 / scale)
            sgd_step(
                w,
                gradient,
                velocity=velocity,
                start=start,
                scale=scale,
                learning_rate=self._rate,
                momentum=self._momentum,
                weight_decay=self._decay,
                proximal_mu=self._mu,
            )
