"""Stochastic gradient descent in place on numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


class SGD:
    """torch.optim.SGD without dampening and Nesterov, with FedProx's term.

    d = gradient + weight_decay * w + proximal_mu * (w - w_start);
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
    ) -> None:
        self._weights, self._rate = weights, np.float32(learning_rate)
        self._momentum, self._decay = np.float32(momentum), np.float32(weight_decay)
        self._mu = np.float32(proximal_mu)
        self._start = [w.copy() for w in weights] if proximal_mu else []
        self._velocity = [np.zeros_like(w) for w in weights] if momentum else []
        self._scratch = [np.empty_like(w) for w in weights]

    def step(self, sums: Sequence[Float32], *, scale: float) -> None:
        """Take one step along the gradients `sums * scale`; `sums` is left zero."""
        for i, (w, d, scratch) in enumerate(zip(self._weights, sums, self._scratch, strict=True)):
            d *= np.float32(scale)
            if self._decay:
                d += np.multiply(w, self._decay, out=scratch)
            if self._mu:
                np.subtract(w, self._start[i], out=scratch)
                scratch *= self._mu
                d += scratch
            direction = d
            if self._momentum:
                direction = self._velocity[i]
                direction *= self._momentum
                direction += d
            w -= np.multiply(direction, self._rate, out=scratch)
            d.fill(0)
