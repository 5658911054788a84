"""The settings of a distillation, with the recipe of docs/robustness.md as defaults."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from server_toolkit.distill.segments import SegmentKind
from server_toolkit.distill.start_kinds import start_kinds
from server_toolkit.distill.windows import WindowKind
from server_toolkit.errors import ConfigError

# Named here and not beside what they name: those modules need torch.
AugmentationFamily = Literal["flip", "crop", "scale", "rotate", "cutout", "color"]
ParameterisationKind = Literal["pixels", "low_resolution", "fourier"]
LabelStart = Literal["smoothed", "teacher"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How to distil; raises `ConfigError` naming the field that is out of range.

    docs/distillation.md has a line on every field. `segment` and `rounds_ahead` say what a segment
    is (see `list_segments`), `window` in which rounds it may start (see `choose_window`):
    `first_round` and `last_round` are for window "rounds". A student takes `student_steps` steps on
    `batch_size` images each. Learning rates are Adam's; the step size is optimised as its
    logarithm. With 0 `iterations` the set is its start, which a control arm needs.
    """

    start: str = "structured"
    images_per_class: int = 40
    label_start: LabelStart = "smoothed"
    teacher_points: int = 1
    parameterisation: ParameterisationKind = "pixels"
    resolution_factor: int = 2

    segment: SegmentKind = "fleet"
    rounds_ahead: int = 1
    window: WindowKind = "rounds"
    first_round: int = 0
    last_round: int | None = 2
    curriculum_rounds: int = 0
    curriculum_until: float = 0.5
    segments_per_iteration: int = 1
    skip_above: float | None = None

    iterations: int = 300
    student_steps: int = 6
    batch_size: int = 50
    student_momentum: float = 0.0
    augmentation: tuple[AugmentationFamily, ...] = ()
    image_learning_rate: float = 0.03
    label_learning_rate: float = 0.05
    step_size_learning_rate: float = 0.05
    initial_step_size: float = 0.1
    learn_labels: bool = True
    image_average: float = 0.0
    mixed_precision: bool = False
    compiled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images_per_class < len(start_kinds(self.start)):
            raise ConfigError(
                f"images_per_class is {self.images_per_class}; start {self.start!r} needs at "
                f"least {len(start_kinds(self.start))}"
            )
        for name, allowed in (
            ("label_start", get_args(LabelStart)),
            ("parameterisation", get_args(ParameterisationKind)),
            ("segment", get_args(SegmentKind)),
            ("window", get_args(WindowKind)),
        ):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
        for family in self.augmentation:
            if family not in get_args(AugmentationFamily):
                raise ConfigError(
                    f"augmentation holds {family!r}; "
                    f"choose from {', '.join(get_args(AugmentationFamily))}"
                )
        for name, least in (
            ("images_per_class", 1),
            ("teacher_points", 1),
            ("resolution_factor", 2),
            ("rounds_ahead", 1),
            ("segments_per_iteration", 1),
            ("student_steps", 1),
            ("batch_size", 1),
            ("first_round", 0),
            ("curriculum_rounds", 0),
            ("iterations", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value < least:
                says = f"be at least {least}" if least else "not be negative"
                raise ConfigError(f"{name} is {value}; it must {says}")
        for name in (
            "image_learning_rate",
            "label_learning_rate",
            "step_size_learning_rate",
            "initial_step_size",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite and above 0")
        for name in ("student_momentum", "image_average"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be at least 0 and below 1"
                )
        if not 0 < self.curriculum_until <= 1:
            raise ConfigError(
                f"curriculum_until is {self.curriculum_until}; it must be above 0 and at most 1"
            )
        if self.skip_above is not None and not self.skip_above > 0:
            raise ConfigError(f"skip_above is {self.skip_above}; it must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
