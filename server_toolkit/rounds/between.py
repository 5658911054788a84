"""How the server hardens between rounds: the settings that a schedule has of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from server_toolkit.rounds.schedule import Schedule

if TYPE_CHECKING:  # needs torch, which a server that waits for devices does not load
    from server_toolkit.robust.harden_config import HardenConfig

    Config = TypeVar("Config", bound=HardenConfig)

SYNTHETIC_WORTH = 4  # real images a class


@dataclass(frozen=True, kw_only=True)
class BetweenRounds:
    """What replaces the settings of hardening there; defaults as in docs/robustness.md.

    `early_steps` are those of each hardening in the first window, `late_steps` in later ones and
    behind the last round. The attack is weaker than that of one long hardening and no images are
    blended: the devices' rounds regularise. An ε above `epsilon_at_once` begins there, since a
    model that is not robust learns nothing from larger attacks, and grows in proportion to the
    rounds up to its full value when the share `full_epsilon_at` of them is done.
    """

    early_steps: int = 80
    late_steps: int = 50
    attack_steps: int = 3
    attack_step: float = 0.5
    learning_rate: float = 0.02
    mix_probability: float = 0.0
    epsilon_at_once: float = 0.1
    full_epsilon_at: float = 0.6

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
        early = bool(schedule.harden) and number < schedule.harden[0][1]
        share = base.real_share
        if share is None and real_per_class:
            share = real_share(real_per_class)
        return dataclasses.replace(
            base,
            steps=self.early_steps if early else self.late_steps,
            attack_steps=self.attack_steps,
            attack_step=self.attack_step,
            learning_rate=self.learning_rate,
            mix_probability=self.mix_probability,
            epsilon=self.epsilon_before(number, rounds=rounds, full=base.epsilon),
            real_share=share,
            seed=base.seed + number,
        )

    def epsilon_before(self, number: int, *, rounds: int, full: float) -> float:
        """Return the attack size that is trained with before round `number`."""
        growing = self.full_epsilon_at * rounds
        share = 1.0 if number + 1 >= growing else (number + 1) / growing
        return min(full, max(self.epsilon_at_once, share * full))


def real_share(images_per_class: float) -> float:
    """Return the share of real images in a batch: a fifth with 1 a class, 0.71 with 10.

    Real images overfit where they are few and are the better ones where they are many; a synthetic
    set counts as `SYNTHETIC_WORTH` of them a class.
    """
    return images_per_class / (images_per_class + SYNTHETIC_WORTH)
