"""The settings of a distillation, with the recipe of docs/robustness.md as defaults."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_args

from server_toolkit.distill.initial_images import StartKind
from server_toolkit.distill.segments import SegmentKind
from server_toolkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How to distil; raises `ConfigError` naming the field that is out of range.

    `segment`, `rounds_ahead`, `first_round` and `last_round` choose segments (see
    `list_segments`): the first rounds, where the weights still move far, carry most of what images
    can be learned from. A student takes `student_steps` steps on `batch_size` images each.
    Learning rates are Adam's; the step size is optimised as its logarithm. With 0 `iterations` the
    set is its start, which a control arm needs.
    """

    start: StartKind = "structured"
    images_per_class: int = 10
    segment: SegmentKind = "fleet"
    rounds_ahead: int = 1
    first_round: int = 0
    last_round: int | None = 2
    iterations: int = 300
    student_steps: int = 6
    batch_size: int = 50
    image_learning_rate: float = 0.03
    label_learning_rate: float = 0.05
    step_size_learning_rate: float = 0.05
    initial_step_size: float = 0.1
    learn_labels: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("start", get_args(StartKind)),
            ("segment", get_args(SegmentKind)),
        ):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
        for name in (
            "images_per_class",
            "rounds_ahead",
            "student_steps",
            "batch_size",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("first_round", "iterations", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in (
            "image_learning_rate",
            "label_learning_rate",
            "step_size_learning_rate",
            "initial_step_size",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite and above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self)
