"""What adversarial training minimises, one method a file.

`make_objective` builds the one that a `HardenConfig` names. Labels are `(N, classes)`
probabilities everywhere: a hard class is a row with a single 1.
"""

from server_toolkit.robust.objectives.base import GradientRule, Objective, Terms
from server_toolkit.robust.objectives.choice import make_gradient_rule, make_objective

__all__ = ["GradientRule", "Objective", "Terms", "make_gradient_rule", "make_objective"]
