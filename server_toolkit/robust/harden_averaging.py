"""Averages of the weights along a training run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from server_toolkit.robust.harden_config import HardenConfig


class WeightAverage:
    """The exponential or the plain mean of the weights after each step.

    - "ema": w̄ ← d w̄ + (1 - d) w with d = min(`ema_decay`, t / (t + 9)) at the t-th step, so that
      the first steps, where little is averaged yet, soon count for nothing.
    - "swa" (Izmailov et al. 2018): the mean over the steps after `swa_start` of them; before those
      there is no average.

    Networks here have no batch statistics that would have to be computed anew for it.
    """

    def __init__(self, config: HardenConfig) -> None:
        self._config = config
        self.mean: list[Tensor] | None = None

    def update(self, weights: Sequence[Tensor], *, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        kind = self._config.averaging
        first = int(self._config.swa_start * self._config.steps) + 1 if kind == "swa" else 1
        if kind == "none" or step < first:
            return
        if self.mean is None:
            self.mean = [tensor.detach().clone() for tensor in weights]
            return
        share = 1 / (step - first + 1)
        if kind == "ema":
            share = 1 - min(self._config.ema_decay, step / (step + 9))
        for mean, tensor in zip(self.mean, weights, strict=True):
            mean.lerp_(tensor.detach(), share)
