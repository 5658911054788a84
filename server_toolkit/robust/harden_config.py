"""The settings of hardening, with the recipe of docs/robustness.md as defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from server_toolkit.errors import ConfigError
from server_toolkit.robust.augment import FILLS

ObjectiveName = Literal["kl", "pgd_at", "trades", "mart", "fast", "free"]
LabelSource = Literal["hard", "learned", "teacher", "ensemble"]
Start = Literal["federated", "scratch"]
Averaging = Literal["none", "ema", "swa"]


@dataclass(frozen=True, kw_only=True)
class HardenConfig:
    """How to harden; raises `ConfigError` naming the field that is out of range.

    docs/hardening.md explains every field; in short:

    - `objective`: the method; `clean_weight` belongs to "kl", `beta` to "trades" and "mart",
      `free_replays` to "free". `awp_gamma` above 0 perturbs the weights too, under any of them.
    - `label_source`: what an image should be classified as: its `hard` class, its `learned` soft
      label, what the `teacher` says of the augmented clean image, or the mean answer of an
      `ensemble` of teachers; their logits are divided by `teacher_temperature`.
    - `start`: from the weights given, the federated model, or from random ones drawn with `seed`.
    - `epsilon`, `attack_steps`: the PGD inside training, l∞ on pixels in [0, 1], in steps of
      `attack_step` · ε. ε rises to its full value over the first `epsilon_warmup` of all steps.
    - `steps`, `batch_size`, `learning_rate`, `momentum`, `weight_decay`: SGD. The learning rate
      falls to zero over the second half.
    - `shift_pixels`, `shift_fill`, `flips`: augmentation. With `mix_probability` a batch is blended
      with other images of the set, which a teacher can label.
    - `real_share`: the share of real images in every batch where there are real and synthetic ones;
      None repeats the real ones until they are about as many as the others.
    - `averaging`: return the weights' exponential mean (`ema_decay`) or their mean over the last
      `1 - swa_start` of the steps.
    - `holdout_share`: keep this share of the (synthetic) images out of training, measure robust
      accuracy on them every `holdout_every` steps, stop after `patience` measurements without a
      better one, and return the best weights.
    """

    objective: ObjectiveName = "kl"
    clean_weight: float = 1.0
    beta: float = 6.0
    free_replays: int = 4
    awp_gamma: float = 0.0
    label_source: LabelSource = "teacher"
    teacher_temperature: float = 1.0
    start: Start = "federated"
    epsilon: float = 0.1
    epsilon_warmup: float = 0.0
    attack_steps: int = 7
    attack_step: float = 0.25
    steps: int = 300
    batch_size: int = 50
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift_pixels: int = 1
    shift_fill: str = "zero"
    flips: bool = False
    mix_probability: float = 0.5
    real_share: float | None = None
    averaging: Averaging = "none"
    ema_decay: float = 0.99
    swa_start: float = 0.75
    holdout_share: float = 0.0
    holdout_every: int = 25
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("objective", get_args(ObjectiveName)),
            ("label_source", get_args(LabelSource)),
            ("start", get_args(Start)),
            ("shift_fill", tuple(FILLS)),
            ("averaging", get_args(Averaging)),
        ):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
        for name, low, high in (
            ("clean_weight", 0, 1000),
            ("beta", 0, 1000),
            ("free_replays", 1, 1000),
            ("awp_gamma", 0, 1),
            ("teacher_temperature", 0.01, 100),
            ("epsilon", 0, 1),
            ("epsilon_warmup", 0, 1),
            ("attack_steps", 1, 1000),
            ("attack_step", 0, 2),
            ("steps", 1, 10**7),
            ("batch_size", 1, 10**5),
            ("learning_rate", 0, 100),
            ("momentum", 0, 1),
            ("weight_decay", 0, 1),
            ("shift_pixels", 0, 64),
            ("mix_probability", 0, 1),
            ("ema_decay", 0, 0.999999),
            ("swa_start", 0, 0.999999),
            ("holdout_share", 0, 0.9),
            ("holdout_every", 1, 10**7),
            ("patience", 1, 10**7),
            ("seed", 0, 2**62),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {low} to {high}")
        if self.real_share is not None and not 0 <= self.real_share <= 1:
            raise ConfigError(f"real_share is {self.real_share}; it must be 0 to 1, or left out")

    def epsilon_at(self, step: int) -> float:
        """Return ε of a step (the first is 0): a line from 0 up to `epsilon`, then that."""
        warm = self.epsilon_warmup * self.steps
        return self.epsilon if step + 1 >= warm else self.epsilon * (step + 1) / warm

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: constant, then a line down to 0."""
        return self.learning_rate * min(1.0, 2 * (1 - step / self.steps))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self)
