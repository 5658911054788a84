"""Shares of correct answers with their 95 % intervals: overall, by class, of the worst class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `count` images, as a share with its 95 % Wilson interval."""

    correct: int
    count: int

    @property
    def value(self) -> float:
        """The share in [0, 1]; 0 where there is no image."""
        return self.correct / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the score interval (Wilson 1927); (0, 1) without images."""
        if self.count == 0:
            return 0.0, 1.0
        n, p, z = self.count, self.value, Z_95
        scale = 1 + z * z / n
        middle = (p + z * z / (2 * n)) / scale
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        low, high = self.interval
        return {
            "accuracy": self.value,
            "low": low,
            "high": high,
            "correct": self.correct,
            "count": self.count,
        }


def overall(correct: Mask) -> Accuracy:
    """Return the accuracy over all images."""
    return Accuracy(int(correct.sum()), len(correct))


def by_class(correct: Mask, labels: Labels, classes: int) -> tuple[Accuracy, ...]:
    """Return the accuracy on the images of each class, in the order of the classes."""
    return tuple(overall(correct[labels == c]) for c in range(classes))


def worst_class(accuracies: tuple[Accuracy, ...]) -> int:
    """Return the class with the lowest accuracy, the first of equals; classes without images never.

    Raises `ValueError` where no class has an image.
    """
    return min(
        (c for c, accuracy in enumerate(accuracies) if accuracy.count),
        key=lambda c: accuracies[c].value,
    )


def scores(correct: Mask, labels: Labels, classes: int) -> dict[str, Any]:
    """Return overall, by-class and worst-class accuracy as JSON-ready values."""
    parts = by_class(correct, labels, classes)
    worst = worst_class(parts)
    return {
        **overall(correct).to_dict(),
        "by_class": [part.to_dict() for part in parts],
        "worst_class": {"class": worst, **parts[worst].to_dict()},
    }
