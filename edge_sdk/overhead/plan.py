"""What a benchmark consists of: arms, budgets, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way of being a client. `needs` names the program that it trains or attacks with."""

    name: str
    title: str
    needs: str
    training: dict[str, Any]
    gets_release: bool = False


def arms(*, epsilon: float, step_size: float) -> dict[str, Arm]:
    """Return all arms, in the order in which they are shown."""

    def pgd(steps: int) -> dict[str, Any]:
        return {
            "kind": "adversarial",
            "epsilon": epsilon,
            "step_size": step_size,
            "attack_steps": steps,
        }

    private = {"kind": "private", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    plain = {"kind": "plain"}
    return {
        a.name: a
        for a in (
            Arm("federated", "federated client alone", "training", plain),
            Arm("trajsyn", "with TrajSyn", "training", plain, gets_release=True),
            Arm("pgd7", "adversarial training, PGD-7", "attack", pgd(7)),
            Arm("pgd10", "adversarial training, PGD-10", "attack", pgd(10)),
            Arm("dp_sgd", "DP-SGD", "private", private),
        )
    }


@dataclass(frozen=True)
class Budget:
    """What training may use beside a foreground loop; None in `BUDGETS` is no training."""

    name: str
    threads: int
    niceness: int
    duty_cycle: float


def budgets(*, default_threads: int, all_threads: int) -> dict[str, Budget | None]:
    """Return the budgets of the training tax: none, the agent's default, everything, half."""
    return {
        "none": None,
        "default": Budget("default", default_threads, 10, 1.0),
        "everything": Budget("everything", all_threads, 0, 1.0),
        "half": Budget("half", default_threads, 10, 0.5),
    }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    threads: int
    batch_size: int
    steps: int
    rounds: int
    repeats: int
    seed: int
    arms: tuple[str, ...]
    tax_s: float
    rate_hz: float
    idle_s: float
    epsilon: float
    step_size: float
