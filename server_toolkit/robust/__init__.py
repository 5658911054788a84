"""Attacks, adversarial training on a proxy set, and the evaluation of what comes out.

`attacks` (`fgsm`, `pgd` ... `autoattack`), `harden.harden`, `evaluate.evaluate`.
"""
