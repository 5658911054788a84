"""The one place that says how a proxy set is made and a model hardened, for methods and controls.

The settings are the defaults of `DistillConfig` and `HardenConfig`; only what the arms differ in,
and what all of them share beside these two, stands here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.start_kinds import needs_server_set
from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden import HardenConfig
from server_toolkit.rounds.between import BetweenRounds
from server_toolkit.rounds.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all hardened arms of a run share.

    `distill` is for sets that start without real images, `distill_server_set` for those that
    start from the server's; their seed, and the attack size of `harden`, come from the cell. With
    label source "ensemble" the teachers are `ensemble_size` models of the federation's path, from
    the share `ensemble_from` of its rounds to the newest.

    `schedule` says before which rounds the server hardens, the same for every method and its
    control: "none" hardens once, behind the last round. Otherwise (see `Schedule`) every hardening
    has the settings of `between`, distillation reads what the fleet did since the first of them,
    and what the last round gave is hardened once more, with those that `between` has for it.
    `start_images_per_class` are random shapes or textures, for `noise_only` and until there is
    something distilled.
    """

    distill: DistillConfig = field(default_factory=DistillConfig)
    distill_server_set: DistillConfig = field(
        default_factory=lambda: DistillConfig(start="server_set")
    )
    harden: HardenConfig = field(default_factory=HardenConfig)
    ensemble_size: int = 4
    ensemble_from: float = 0.5
    schedule: Literal["none", "recommended"] | Schedule = "none"
    between: BetweenRounds = field(default_factory=BetweenRounds)
    start_images_per_class: int = 100

    def __post_init__(self) -> None:
        with_real = [
            needs_server_set(config.start) for config in (self.distill, self.distill_server_set)
        ]
        if with_real != [False, True]:
            raise ConfigError(
                "distill must start without real images, distill_server_set with them"
            )
        if isinstance(self.schedule, Schedule) and not self.schedule.distil:
            raise ConfigError("a schedule of the benchmark must say when the server distils")

    def schedule_of(self, rounds: int) -> Schedule:
        """Return the schedule of a federation of so many rounds."""
        if isinstance(self.schedule, Schedule):
            return self.schedule
        return Schedule() if self.schedule == "none" else Schedule.recommended(rounds)

    @property
    def needs_device_paths(self) -> bool:
        """Whether distillation reads single devices' weights, not the fleet's alone."""
        return any(c.segment != "fleet" for c in (self.distill, self.distill_server_set))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "distill": self.distill.to_dict(),
            "distill_server_set": self.distill_server_set.to_dict(),
            "harden": self.harden.to_dict(),
            "ensemble_size": self.ensemble_size,
            "ensemble_from": self.ensemble_from,
            "schedule": asdict(self.schedule)
            if isinstance(self.schedule, Schedule)
            else self.schedule,
            "between": asdict(self.between),
            "start_images_per_class": self.start_images_per_class,
        }
