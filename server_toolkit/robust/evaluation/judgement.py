"""What one model is worth at one attack size: a mask of correct answers for every attack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from server_toolkit.robust.evaluation.accuracy import Accuracy, Labels, Mask, overall, scores

Norm = Literal["linf", "l2"]
Source = Literal["none", "white_box", "transfer", "scores"]
"""Where an attack's images come from: no attack, the model's own gradients, those of another model,
or the model's outputs alone."""

CLEAN = "clean"
EXCHANGED = "exchanged"  # images that turned another file of the same model


@dataclass(frozen=True)
class Example:
    """An image that an attack turned: its place in the judged set, and what became of it."""

    index: int
    adversarial: npt.NDArray[np.float32]  # (C, H, W) in [0, 1]
    predicted: int


@dataclass(frozen=True)
class Fooling:
    """One attacked image in the ball for each judged image whose right answer an attack turned.

    `indices` `(K,)` are places in the judged set, `images` `(K, C, H, W) float32 in [0, 1]`.
    """

    indices: npt.NDArray[np.intp]
    images: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one attack left: `correct` `(N,) bool`, true where clean and attacked are both right.

    `broken_by` tells for each part of AutoAttack, in order, which images it was the first to turn.
    `distances` `(N,)` is the l2 distance, in pixel units, of the nearest adversarial image that a
    minimum-norm attack found: 0 where the clean answer is wrong already, infinite without one.
    """

    attack: str
    source: Source
    correct: Mask
    settings: Mapping[str, Any] = field(default_factory=dict)
    broken_by: Mapping[str, Mask] = field(default_factory=dict)
    distances: npt.NDArray[np.float32] | None = None
    examples: Sequence[Example] = ()

    @property
    def name(self) -> str:
        """The attack's name; with "_transfer" where another model gave the gradients."""
        return f"{self.attack}_transfer" if self.source == "transfer" else self.attack

    @property
    def distance_percentiles(self) -> dict[str, float | None]:
        """How far the nearest adversarial image is, over the images with the right clean answer.

        None where none was found, or where there is no such image; empty for other attacks.
        """
        if self.distances is None:
            return {}
        right = np.sort(self.distances[self.distances > 0])
        percentiles: dict[str, float | None] = dict.fromkeys(("p10", "p50", "p90"))
        for percent in (10, 50, 90) if len(right) else ():
            value = float(right[round((len(right) - 1) * percent / 100)])
            percentiles[f"p{percent}"] = value if math.isfinite(value) else None
        return percentiles

    @property
    def left_after(self) -> dict[str, int]:
        """How many images stood after each part of AutoAttack, in order; empty for others."""
        left = int(self.correct.sum()) + sum(int(m.sum()) for m in self.broken_by.values())
        counts = {}
        for part, mask in self.broken_by.items():
            left -= int(mask.sum())
            counts[part] = left
        return counts


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All outcomes for one model, one norm and one epsilon; the first is the clean one.

    `fooling` is None unless it was asked for: it takes as much memory as the images.
    """

    norm: Norm
    epsilon: float
    seed: int
    labels: Labels
    classes: int
    outcomes: tuple[Outcome, ...]
    fooling: Fooling | None = None

    def outcome(self, name: str) -> Outcome:
        """Return the outcome of this name; raises `KeyError` for an attack that was not run."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        raise KeyError(f"{name} was not run; there are {', '.join(o.name for o in self.outcomes)}")

    def correct(self, name: str) -> Mask:
        """Return `(N,) bool`: which images keep the right answer under this attack."""
        return self.outcome(name).correct

    def accuracy(self, name: str) -> Accuracy:
        """Return the accuracy under this attack."""
        return overall(self.correct(name))

    @cached_property
    def robust(self) -> Mask:
        """`(N,) bool`: which images stand against every attack that was run."""
        every: Mask = np.all([outcome.correct for outcome in self.outcomes], axis=0)
        return every

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; docs/evaluation.md describes them."""
        return {
            "norm": self.norm,
            "epsilon": self.epsilon,
            "seed": self.seed,
            "images": len(self.labels),
            "classes": self.classes,
            "attacks": [self._attack(outcome) for outcome in self.outcomes],
            "robust": {**self._scores(self.robust), "correct_images": _digits(self.robust)},
        }

    def _attack(self, outcome: Outcome) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "name": outcome.name,
            "source": outcome.source,
            "settings": dict(outcome.settings),
            **self._scores(outcome.correct),
            "correct_images": _digits(outcome.correct),
        }
        if outcome.broken_by:
            fields["left_after"] = outcome.left_after
        if outcome.distances is not None:
            fields["l2_distance"] = outcome.distance_percentiles
        return fields

    def _scores(self, correct: Mask) -> dict[str, Any]:
        return scores(correct, self.labels, self.classes)


def _digits(mask: Mask) -> str:
    """Return one digit an image, in the order of the images: 1 where the answer is right."""
    return "".join("1" if right else "0" for right in mask)
