"""What an attack costs: passes through the model, forward or backward, for an image that stands."""

from __future__ import annotations

from server_toolkit.robust.attacks import apgd, cw, fab
from server_toolkit.robust.evaluation.crafting import AttackSettings

GRADIENT = 2  # passes: one forward, one backward
ANSWER = 1  # to the attacked image


def attack_passes(attack: str, settings: AttackSettings, *, classes: int) -> int:
    """Return the passes for one image that nothing breaks; one that falls costs fewer."""
    if attack == "autoattack":
        return sum(autoattack_passes(settings, classes=classes).values()) + ANSWER
    targets = min(apgd.TARGETS, classes - 1)
    steps = {
        "fgsm": GRADIENT,
        "pgd": GRADIENT * settings.steps,
        "cw_linf": GRADIENT * cw.LINF_STEPS,
        "cw_l2": GRADIENT * cw.L2_STEPS * cw.SEARCHES,
        "apgd_ce": GRADIENT * apgd.STEPS,
        "apgd_dlr": GRADIENT * apgd.STEPS,
        "apgd_t": GRADIENT * apgd.STEPS * targets,
        "fab_t": (GRADIENT + 1) * fab.STEPS * targets,
        "square": settings.square_queries,
    }
    return steps[attack] + ANSWER


def autoattack_passes(settings: AttackSettings, *, classes: int) -> dict[str, int]:
    """Return the passes of AutoAttack's parts in order, named as it names them."""
    return {
        part.replace("_", "-"): attack_passes(part, settings, classes=classes) - ANSWER
        for part in ("apgd_ce", "apgd_t", "fab_t", "square")
    }
