"""How the server hardens between rounds: the settings that a schedule has of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from server_toolkit.rounds.schedule import Schedule

if TYPE_CHECKING:  # needs torch, which a server that waits for devices does not load
    from server_toolkit.robust.harden_config import HardenConfig

    Config = TypeVar("Config", bound=HardenConfig)

SYNTHETIC_WORTH = 10  # real images a class


@dataclass(frozen=True, kw_only=True)
class BetweenRounds:
    """What replaces the settings of hardening there; defaults as in docs/robustness.md.

    `early_steps` are those of each hardening in the first window, `late_steps` of later ones. The
    attack has fewer and larger steps than that of one long hardening. In the first window ε is
    multiplied by `early_epsilon_factor` and at most `early_epsilon_at_most`: images distilled from
    the path of a model that withstands more are better, while a model that withstands nothing yet
    learns nothing from the largest attacks. Behind the last round a short hardening at a lower
    rate, `last_steps` and `last_learning_rate`, makes up for what that round undid.
    """

    early_steps: int = 80
    late_steps: int = 120
    last_steps: int = 60
    attack_steps: int = 3
    attack_step: float = 0.5
    learning_rate: float = 0.02
    last_learning_rate: float = 0.01
    early_epsilon_factor: float = 1.75
    early_epsilon_at_most: float = 0.2

    def config(
        self,
        base: Config,
        number: int,
        *,
        rounds: int,
        schedule: Schedule,
        real_per_class: float = 0,
    ) -> Config:
        """Return `base` for the hardening before round `number`; `rounds` is behind the last.

        With `real_per_class` real images beside synthetic ones, and no `real_share` in `base`, the
        batches hold `real_share(real_per_class)` of them. Every round draws with a seed of its own.
        """
        share = base.real_share
        if share is None and real_per_class:
            share = real_share(real_per_class)
        last = number >= rounds
        early = not last and bool(schedule.harden) and number < schedule.harden[0][1]
        return dataclasses.replace(
            base,
            real_share=share,
            seed=base.seed + number,
            steps=self.last_steps if last else self.early_steps if early else self.late_steps,
            attack_steps=self.attack_steps,
            attack_step=self.attack_step,
            learning_rate=self.last_learning_rate if last else self.learning_rate,
            epsilon=self.early_epsilon(base.epsilon) if early else base.epsilon,
        )

    def early_epsilon(self, full: float) -> float:
        """Return the attack size that is trained with in the first window."""
        return min(self.early_epsilon_factor * full, self.early_epsilon_at_most)


def real_share(images_per_class: float) -> float:
    """Return the share of real images in a batch: half with 10 a class, a tenth with 1.

    Real images overfit where they are few and are the better ones where they are many; a synthetic
    set counts as `SYNTHETIC_WORTH` of them a class.
    """
    return images_per_class / (images_per_class + SYNTHETIC_WORTH)
