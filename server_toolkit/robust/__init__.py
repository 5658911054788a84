"""Attacks, adversarial training on a proxy set, and the evaluation of what comes out.

`attacks` (`fgsm`, `pgd`), `harden.harden`, `evaluate.evaluate`.
"""
