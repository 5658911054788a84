"""Attacks, adversarial training on a proxy set, and the evaluation of what comes out."""

from server_toolkit.robust.attacks import fgsm, pgd
from server_toolkit.robust.evaluate import Accuracy, EvaluationReport, Score, evaluate
from server_toolkit.robust.harden import HardenConfig, HardenProgress, HardenResult, harden

__all__ = [
    "Accuracy",
    "EvaluationReport",
    "HardenConfig",
    "HardenProgress",
    "HardenResult",
    "Score",
    "evaluate",
    "fgsm",
    "harden",
    "pgd",
]
