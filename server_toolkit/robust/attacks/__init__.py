"""Attacks on images in [0, 1], one a file.

`fgsm` and `pgd` return images and also serve adversarial training. The attacks that judge return
an `AttackResult`: `cw_linf`, `cw_l2`, `apgd_ce`, `apgd_dlr`, `apgd_t`, `fab_t` and `square`;
`autoattack` runs the standard ensemble. A model is any callable from images to logits, in
evaluation mode; `square` needs no gradient of it.
"""

from server_toolkit.robust.attacks.apgd import apgd_ce, apgd_dlr, apgd_t
from server_toolkit.robust.attacks.autoattack import autoattack
from server_toolkit.robust.attacks.cw import cw_l2, cw_linf
from server_toolkit.robust.attacks.fab import fab_t
from server_toolkit.robust.attacks.fgsm import fgsm
from server_toolkit.robust.attacks.pgd import pgd
from server_toolkit.robust.attacks.result import AttackResult, AutoAttackResult, Norm
from server_toolkit.robust.attacks.square import square

__all__ = [
    "AttackResult",
    "AutoAttackResult",
    "Norm",
    "apgd_ce",
    "apgd_dlr",
    "apgd_t",
    "autoattack",
    "cw_l2",
    "cw_linf",
    "fab_t",
    "fgsm",
    "pgd",
    "square",
]
