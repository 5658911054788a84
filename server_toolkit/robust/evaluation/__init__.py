"""What a model is worth under attack, and why a number may be wrong."""

from server_toolkit.robust.evaluation.accuracy import Accuracy
from server_toolkit.robust.evaluation.judge import Progress, judge
from server_toolkit.robust.evaluation.judgement import Judgement, Outcome

__all__ = ["Accuracy", "Judgement", "Outcome", "Progress", "judge"]
