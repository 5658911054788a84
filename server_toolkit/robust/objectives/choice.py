"""From the settings to an objective and its gradients."""

from __future__ import annotations

from server_toolkit.robust.harden_config import HardenConfig
from server_toolkit.robust.objectives.awp import AdversarialWeights
from server_toolkit.robust.objectives.base import GradientRule, Objective, plain_gradients
from server_toolkit.robust.objectives.fast import fast
from server_toolkit.robust.objectives.free import Free
from server_toolkit.robust.objectives.inner import Ascent
from server_toolkit.robust.objectives.kl import Kl
from server_toolkit.robust.objectives.mart import Mart
from server_toolkit.robust.objectives.pgd_at import PgdAt
from server_toolkit.robust.objectives.trades import Trades


def make_objective(config: HardenConfig, *, chunk: int | None = None) -> Objective:
    """Return the objective that the settings name; attacks take `chunk` images at a time."""
    inner = Ascent(steps=config.attack_steps, step=config.attack_step, chunk=chunk)
    match config.objective:
        case "kl":
            return Kl(inner, config.clean_weight)
        case "pgd_at":
            return PgdAt(inner)
        case "trades":
            return Trades(inner, config.beta)
        case "mart":
            return Mart(inner, config.beta)
        case "fast":
            return fast(chunk=chunk)
        case "free":
            return Free(replays=config.free_replays)


def make_gradient_rule(config: HardenConfig) -> GradientRule:
    """Return plain gradients, or with `awp_gamma` those at perturbed weights."""
    return AdversarialWeights(config.awp_gamma) if config.awp_gamma else plain_gradients
