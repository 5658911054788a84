"""How much better one model is than another on the same images, beyond chance or not."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from server_toolkit.robust.evaluation.accuracy import Z_95, Mask


@dataclass(frozen=True)
class Gain:
    """The difference of two accuracies in [-1, 1] with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "beyond_chance": self.beyond_chance}


def paired_gain(model: Mask, baseline: Mask) -> Gain:
    """Return the accuracy of `model` minus that of `baseline`, `(N,) bool` each, image by image.

    The interval is that of paired proportions: with the shares b and c of images that only the
    one or only the other gets right, b - c ± 1.96 sqrt((b + c - (b - c)²) / N), with half an image
    added to both sides so that equal masks have an interval too (Agresti & Min 2005). Raises
    `ValueError` for masks of different images.
    """
    if model.shape != baseline.shape:
        raise ValueError(f"masks of {model.shape} and {baseline.shape} are not of the same images")
    count = len(model) + 2
    won = (int((model & ~baseline).sum()) + 0.5) / count
    lost = (int((~model & baseline).sum()) + 0.5) / count
    half = Z_95 * math.sqrt((won + lost - (won - lost) ** 2) / count)
    middle = won - lost
    value = float(model.mean() - baseline.mean())
    return Gain(value, max(-1.0, middle - half), min(1.0, middle + half))
