"""When to stop: robust accuracy on the part of the proxy set that is held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from server_toolkit.robust.harden_config import HardenConfig
from server_toolkit.robust.objectives.inner import Ascent

ATTACK_STEPS = 10


def split(count: int, config: HardenConfig) -> tuple[Tensor, Tensor]:
    """Return the indices to train on and those held out; the seed decides which.

    At least one image is held out if `holdout_share` is above 0, and one trained on.
    """
    if config.holdout_share == 0 or count < 2:
        return torch.arange(count), torch.empty(0).long()
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(count, generator=generator)
    held_out = min(count - 1, max(1, round(config.holdout_share * count)))
    return order[held_out:].sort().values, order[:held_out].sort().values


class Selection:
    """Keeps the best weights, and says when there have been none better for long.

    Better is a higher accuracy under PGD-10 at the full ε against the likeliest class of
    `labels` `(N, classes)`; among equals, a lower loss there: accuracy on few images is coarse.
    """

    def __init__(self, images: Tensor, labels: Tensor, config: HardenConfig, inner: Ascent) -> None:
        self._images, self._labels = images, labels.argmax(dim=1)
        self._target = labels
        self._config, self._inner = config, inner
        self.best: list[Tensor] | None = None
        self.best_score: tuple[float, float] = (-1.0, 0.0)  # accuracy, minus the loss
        self.best_step = 0
        self.since_best = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the best weights, JSON-ready."""
        return {
            "best_score": list(self.best_score),
            "best_step": self.best_step,
            "since_best": self.since_best,
        }

    def load(self, best: list[Tensor], fields: Mapping[str, Any]) -> None:
        """Go back to `to_dict` and the best weights, none of them before a measurement."""
        accuracy, minus_loss = fields["best_score"]
        self.best, self.best_score = best or None, (accuracy, minus_loss)
        self.best_step, self.since_best = fields["best_step"], fields["since_best"]

    @property
    def exhausted(self) -> bool:
        """Whether `patience` measurements in a row were no better than the best."""
        return self.since_best >= self._config.patience

    def measure(self, network: nn.Module, *, step: int) -> float:
        """Return robust accuracy in [0, 1], and keep the weights if they are the best."""
        # The same start every time: two measurements differ by the weights alone.
        generator = torch.Generator().manual_seed(self._config.seed)
        adversarial = self._inner.from_uniform(
            network, self._images, self._target, epsilon=self._config.epsilon, generator=generator
        )
        with torch.no_grad():
            logits = network(adversarial)
            accuracy = float((logits.argmax(dim=1) == self._labels).float().mean())
            loss = float(cross_entropy(logits, self._target))
        self.since_best += 1
        if (accuracy, -loss) > self.best_score:
            self.best = [parameter.detach().clone() for parameter in network.parameters()]
            self.best_score, self.best_step, self.since_best = (accuracy, -loss), step, 0
        return accuracy
