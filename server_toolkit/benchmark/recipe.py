"""The one place that says how a proxy set is made and a model hardened, for methods and controls.

The settings are the defaults of `DistillConfig` and `HardenConfig`; only what the arms differ in,
and what all of them share beside these two, stands here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from server_toolkit.distill.config import DistillConfig
from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden import HardenConfig

Teacher = Literal["federated", "latest"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the server hardens; the same for every method and its control.

    With 0 `cycles` the model is hardened once, after the last round. With more, the last
    `cycles * rounds_per_cycle` rounds alternate with hardening: harden, federate that many rounds
    from the hardened weights, and so on, and harden once more at the end unless `end_in_round`.
    All arms, `fedavg` and `client_at` too, have the same number of rounds, and in those last
    rounds the same `learning_rate` on the devices (None: that of the rounds before). With
    `distil_again` every cycle after the first adds images from the trajectory that the hardened
    model took. The `teacher` of every hardening is the model before the first one, `federated`,
    or the one that the hardening starts from, `latest`.
    """

    cycles: int = 0
    rounds_per_cycle: int = 1
    learning_rate: float | None = None
    end_in_round: bool = False
    distil_again: bool = False
    teacher: Teacher = "federated"

    def __post_init__(self) -> None:
        if self.teacher not in get_args(Teacher):
            raise ConfigError(f"teacher is {self.teacher!r}; choose {', '.join(get_args(Teacher))}")
        if self.cycles < 0 or self.rounds_per_cycle < 1:
            raise ConfigError("a schedule needs cycles of at least 0, each of at least one round")
        if self.end_in_round and not self.cycles:
            raise ConfigError("a schedule that ends in a round needs at least one cycle")

    @property
    def rounds(self) -> int:
        """How many of the federation's last rounds alternate with hardening."""
        return self.cycles * self.rounds_per_cycle


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all hardened arms of a run share.

    `distill` is for sets that start without real images, `distill_server_set` for those that
    start from the server's; their seed, and the attack size of `harden`, come from the cell. With
    label source "ensemble" the teachers are `ensemble_size` models of the federation's path, from
    the share `ensemble_from` of its rounds to the newest.
    """

    distill: DistillConfig = field(default_factory=DistillConfig)
    distill_server_set: DistillConfig = field(
        default_factory=lambda: DistillConfig(start="server_set")
    )
    harden: HardenConfig = field(default_factory=HardenConfig)
    ensemble_size: int = 4
    ensemble_from: float = 0.5
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if self.distill.start == "server_set" or self.distill_server_set.start != "server_set":
            raise ConfigError("distill must start without real images, distill_server_set from it")

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
            "schedule": asdict(self.schedule),
        }
