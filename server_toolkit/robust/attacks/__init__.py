"""Attacks on images in [0, 1], one a file.

`fgsm` and `pgd` return images and also serve adversarial training; the attacks that judge return
an `AttackResult`: `cw_linf`, `cw_l2`, `apgd_ce`, `apgd_dlr`, `apgd_t`, `fab_t`, `square`; and
`autoattack` runs the standard ensemble. A model is any callable from images to logits, in
evaluation mode.
"""

from server_toolkit.robust.attacks.fgsm import fgsm
from server_toolkit.robust.attacks.pgd import pgd

__all__ = ["fgsm", "pgd"]
