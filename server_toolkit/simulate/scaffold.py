"""SCAFFOLD's control variates (Karimireddy et al. 2020, algorithm 1, option II)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.layout import Flat


class ControlVariates:
    """The fleet's variate c and every device's c_i: what each expects its gradient to be.

    A device adds c - c_i to each of its gradients, which takes out what only its own data want.
    c is the mean of all c_i, weighted by their numbers of examples as the weights' average is, so
    that a round's aggregate stays FedAvg of its updates.
    """

    def __init__(self, samples: Mapping[str, int], size: int) -> None:
        total = sum(samples.values())
        self._share = {device: count / total for device, count in samples.items()}
        self.fleet: Flat = np.zeros(size, np.float32)
        self.device: dict[str, Flat] = {}

    def correction(self, device: str) -> Flat:
        """Return c - c_i."""
        own = self.device.get(device)
        return self.fleet.copy() if own is None else self.fleet - own

    def renew(self, moves: Mapping[str, tuple[Flat, float]]) -> None:
        """Take in what the devices of a round did: start - end, and `path_length` of its steps.

        c_i <- c_i - c + (start - end) / (K * learning_rate), then c follows the mean.
        """
        change = np.zeros(self.fleet.shape, np.float64)
        before = self.fleet.copy()
        for device, (move, length) in moves.items():
            own = self.device.get(device)
            renewed = move / np.float32(length) - before
            if own is not None:
                renewed += own
            change += self._share[device] * (
                renewed.astype(np.float64) - (0.0 if own is None else own)
            )
            self.device[device] = renewed
        self.fleet = (before + change).astype(np.float32)


def path_length(steps: int, *, learning_rate: float, momentum: float) -> float:
    """Return how far `steps` of SGD go for a constant gradient of 1.

    Without momentum K * learning_rate, the paper's divisor; with it each gradient also lives on in
    the velocity: learning_rate * sum over k = 1..K of (1 - m^k) / (1 - m), as in FedNova
    (Wang et al. 2020, section 4.1).
    """
    if momentum == 0:
        return learning_rate * steps
    lived = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    return learning_rate * lived
