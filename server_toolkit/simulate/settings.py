"""What a simulated federation is told."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal, get_args

from edge_sdk.protocol.messages import ENCODING, NAME, Encoding, TrainingSettings
from server_toolkit.errors import ConfigError

Algorithm = Literal["fedavg", "fedprox", "scaffold"]
Objective = Literal["plain", "pgd"]
Engine = Literal["auto", "native", "stacked"]


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """How devices train and answer.

    `epochs` to `seed` and `encoding` are a task's own settings; `run` is part of every device's
    shuffling seed, as with real devices. `proximal_mu` belongs to "fedprox" alone. With objective
    "pgd" devices train on adversarial images: `attack_steps` steps of `attack_step_size` (default
    `epsilon / 4`) in the l-infinity ball of radius `epsilon`, pixels in [0, 1].

    `participation` is the share of devices that a round asks; of those, each is `late` (it trains,
    its update comes after the round has closed) or `never` answers with these probabilities.

    `engine` "native" trains on the devices' own runtime, `workers` of them at a time with
    `threads` threads each; "stacked" trains `together` of them as one network in torch on `device`
    (0: as many as are worth it there); "auto" takes the faster one. `micro_batch` is that of the
    devices' program.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    seed: int = 0
    encoding: Encoding = "int8"
    run: str = "simulation"
    algorithm: Algorithm = "fedavg"
    objective: Objective = "plain"
    epsilon: float = 0.1
    attack_steps: int = 7
    attack_step_size: float | None = None
    participation: float = 1.0
    late: float = 0.0
    never: float = 0.0
    engine: Engine = "auto"
    device: str = "cpu"
    together: int = 0
    threads: int = 1
    workers: int = 1
    micro_batch: int = 4

    def __post_init__(self) -> None:
        for name, choices in (
            ("algorithm", Algorithm),
            ("objective", Objective),
            ("engine", Engine),
        ):
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise ConfigError(f"{name} {getattr(self, name)!r:.40}: choose from {known}")
        if not re.fullmatch(ENCODING, self.encoding):
            raise ConfigError(
                f"encoding {self.encoding!r:.40}: choose from int8, int4, fp32, or topk- with the "
                "fraction to send, such as topk-0.05"
            )
        if not re.fullmatch(NAME, self.run):
            raise ConfigError(f"name {self.run!r:.90}: at most 80 letters, digits and ._-")
        for field in dataclasses.fields(TrainingSettings):
            low, high = field.metadata["low"], field.metadata["high"]
            if not low <= (value := getattr(self, field.name)) <= high:
                raise ConfigError(f"{field.name} is {value}; it must be from {low} to {high}")
        if (self.algorithm == "fedprox") != (self.proximal_mu > 0):
            raise ConfigError("fedprox needs a proximal_mu above 0, and nothing else takes one")
        if not 0 < self.participation <= 1:
            raise ConfigError(f"participation is {self.participation}; it must be in (0, 1]")
        if min(self.late, self.never) < 0 or self.late + self.never > 1:
            raise ConfigError(
                f"late {self.late} and never {self.never} must be shares of at most 1 together"
            )
        if not 0 <= self.epsilon <= 1:
            raise ConfigError(f"epsilon is {self.epsilon}; it must be from 0 to 1")
        if self.attack_steps < 0:
            raise ConfigError(f"attack_steps is {self.attack_steps}; it must not be negative")

    @property
    def training(self) -> TrainingSettings:
        """The part that a real task would carry."""
        return TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            proximal_mu=self.proximal_mu,
            seed=self.seed,
        )

    @property
    def step_size(self) -> float:
        """The attack's step size."""
        return self.epsilon / 4 if self.attack_step_size is None else self.attack_step_size
