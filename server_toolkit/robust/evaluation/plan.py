"""Which attacks are run on a model, and where each takes its gradients from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from server_toolkit.errors import ConfigError
from server_toolkit.robust.evaluation.judgement import Norm, Source

PRESETS: dict[Norm, dict[str, tuple[str, ...]]] = {
    "linf": {
        "quick": ("fgsm", "pgd"),
        "standard": ("fgsm", "pgd", "cw_linf", "cw_l2", "autoattack"),
    },
    "l2": {"quick": ("apgd_ce",), "standard": ("apgd_ce", "cw_l2", "autoattack")},
}
ONLY_LINF = ("fgsm", "pgd", "cw_linf")
ATTACKS = (*ONLY_LINF, "cw_l2", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square", "autoattack")

AUTOATTACK_PARTS = frozenset(("apgd_ce", "apgd_t", "fab_t", "square"))

# Images made on one model and tried on another should go deep into the ball. Those of a
# minimum-norm attack, and of AutoAttack, which leaves an image alone once it is broken, lie at the
# first model's boundary.
_TRANSFERRED = {
    "fgsm": "fgsm",
    "pgd": "pgd",
    "cw_linf": "cw_linf",
    "apgd_ce": "apgd_ce",
    "apgd_dlr": "apgd_dlr",
    "apgd_t": "apgd_t",
    "autoattack": "apgd_ce",
}


@dataclass(frozen=True)
class Planned:
    """One attack, and what it knows of the model that is judged."""

    attack: str
    source: Source


def parse_norm(text: str) -> Norm:
    """Return "linf" or "l2"; raises `ConfigError`."""
    for norm in PRESETS:
        if text == norm:
            return norm
    raise ConfigError(f"unknown norm {text!r:.40}; choose {' or '.join(PRESETS)}")


def parse_attacks(text: str, norm: Norm) -> tuple[str, ...]:
    """Return the attacks of "quick", "standard" or a list with commas; raises `ConfigError`."""
    presets = PRESETS[norm]
    parts = [part.strip() for part in text.split(",")]
    names = tuple(dict.fromkeys(a for part in parts for a in presets.get(part, (part,))))
    for name in names:
        if name not in ATTACKS:
            raise ConfigError(
                f"unknown attack {name!r:.60}; choose {', '.join(presets)}, or a list with commas "
                f"of {', '.join(ATTACKS)}"
            )
        if norm != "linf" and name in ONLY_LINF:
            raise ConfigError(f"{name} attacks in the l∞ ball; with l2 use apgd_ce or standard")
    return names


def is_standard(attacks: Collection[str]) -> bool:
    """Say whether these are at least AutoAttack: itself, or each of its parts on all images."""
    return "autoattack" in attacks or set(attacks) >= AUTOATTACK_PARTS


def plan(
    attacks: Sequence[str], norm: Norm, *, white_box: bool, surrogate: bool
) -> tuple[Planned, ...]:
    """Return what is run on a model that gives gradients, or not, beside one that lends its own.

    Without gradients of its own a model is attacked with the images that break the surrogate, and
    always with Square, which needs outputs only. With both, PGD images of the surrogate are tried
    too: they must not break what the model's own gradients left.
    """
    if white_box:
        own = [Planned(a, "scores" if a == "square" else "white_box") for a in attacks]
        control = plan_curve(norm, white_box=False, surrogate=True)
        return (*own, *([control] if surrogate else []))
    lent = dict.fromkeys(_TRANSFERRED[a] for a in attacks if a in _TRANSFERRED)
    transfers = [Planned(a, "transfer") for a in lent] if surrogate else []
    return (*transfers, Planned("square", "scores"))


def plan_curve(norm: Norm, *, white_box: bool, surrogate: bool) -> Planned:
    """Return the one attack that is repeated at many sizes: PGD, or APGD in the l2 ball."""
    if not white_box and not surrogate:
        return Planned("square", "scores")
    return Planned("pgd" if norm == "linf" else "apgd_ce", "white_box" if white_box else "transfer")
