"""The evaluation gate: what a model must reach, beside the undefended one, to be released."""

from __future__ import annotations

from dataclasses import dataclass

from server_toolkit.errors import GateError

_ROUNDING = 1e-9  # a limit of 0.04 is met by 0.96 against 1.00


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """What the arm must reach; every figure is a share in [0, 1], 0.04 is four points."""

    min_clean: float = 0.0
    max_clean_drop: float = 1.0
    min_robust_gain: float = 0.0
    max_int8_drop: float = 0.02


@dataclass(frozen=True, kw_only=True)
class ArmScores:
    """Accuracies of one arm in [0, 1]: on clean and adversarial images, fp32 and int8 ONNX."""

    clean: float
    robust: float
    int8_clean: float
    int8_robust: float


def check_gate(arm: ArmScores, fedavg: ArmScores, limits: GateLimits) -> None:
    """Compare the arm with the undefended model; raises `GateError` listing every missed limit.

    The int8 file must keep up with the fp32 one on clean and on adversarial images.
    """
    wanted = (  # what, value, limit, +1 where more is better
        ("clean accuracy", arm.clean, limits.min_clean, +1),
        ("clean accuracy lost to fedavg", fedavg.clean - arm.clean, limits.max_clean_drop, -1),
        ("robust accuracy won over fedavg", arm.robust - fedavg.robust, limits.min_robust_gain, +1),
        ("clean accuracy lost to int8", arm.clean - arm.int8_clean, limits.max_int8_drop, -1),
        ("robust accuracy lost to int8", arm.robust - arm.int8_robust, limits.max_int8_drop, -1),
    )
    missed = [
        f"{what} is {100 * value:.1f} points, {'at least' if sign > 0 else 'at most'} "
        f"{100 * limit:.1f} are wanted (missed by {100 * abs(value - limit):.1f})"
        for what, value, limit, sign in wanted
        if not sign * (value - limit) >= -_ROUNDING  # NaN misses
    ]
    if missed:
        raise GateError("; ".join(missed))
