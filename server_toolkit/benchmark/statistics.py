"""Intervals: over seeds for the method's own luck, over images for that of the test set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server_toolkit.robust.evaluation.accuracy import Z_95, Accuracy

Interval = tuple[float, float]

# The 97.5 % quantiles of Student's t for 1, 2, 3 ... degrees of freedom.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """The mean over seeds with its 95 % t interval; None where one seed cannot say."""

    mean: float
    interval: Interval | None
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def over_seeds(values: Sequence[float]) -> Spread:
    """Return mean and t interval (Student 1908) of one value a seed."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Spread(mean, None, count)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    # Beyond the table its last entry, a little too wide.
    half = T_95[min(count - 1, len(T_95)) - 1] * deviation / math.sqrt(count)
    return Spread(mean, (mean - half, mean + half), count)


def pooled(parts: Sequence[Accuracy]) -> Accuracy:
    """Return one accuracy over the images of all seeds; its interval is Wilson's."""
    return Accuracy(sum(p.correct for p in parts), sum(p.count for p in parts))


def worst_class(by_class: Sequence[Sequence[Accuracy]]) -> tuple[int, Accuracy]:
    """Return the class that is worst over all seeds together, `by_class[seed][class]`.

    The smallest of several noisy figures is a little too low; classes without images are left out.
    Raises `ValueError` where no class has any.
    """
    together = [pooled(parts) for parts in zip(*by_class, strict=True)]
    judged = [(accuracy.value, label) for label, accuracy in enumerate(together) if accuracy.count]
    _, label = min(judged)
    return label, together[label]


def paired_over_images(
    ours: Sequence[npt.NDArray[np.bool_]], theirs: Sequence[npt.NDArray[np.bool_]]
) -> Spread:
    """Return the mean difference of two arms on the same images of all seeds, with its interval.

    Every image gives −1, 0 or 1, so what is hard for both arms cancels out. Normal interval of the
    mean of these differences; None for fewer than two images.
    """
    differences = np.concatenate(ours).astype(float) - np.concatenate(theirs).astype(float)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return Spread(mean, None, count)
    half = Z_95 * float(differences.std(ddof=1)) / math.sqrt(count)
    return Spread(mean, (mean - half, mean + half), count)


def rounded(value: float, digits: int) -> str:
    """Return a number with so many digits and no sign before a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def in_points(difference: float) -> str:
    """Return a difference of two accuracies in points, with its sign: "+1.5", "-0.2", "0.0"."""
    text = rounded(100 * difference, 1)
    return text if text.startswith("-") or text == "0.0" else f"+{text}"
