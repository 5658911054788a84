"""Noticing that a distillation has diverged, and bringing it back."""

from __future__ import annotations

import logging
import math

import numpy as np

from server_toolkit.distill.checkpoint import DistillState
from server_toolkit.errors import DistillationError

logger = logging.getLogger(__name__)

WINDOW = 20  # iterations between two looks at the mean loss, and between two checkpoints
RISE = 1.5  # a window's mean this many times the best one counts as divergence
EXPLODED = 100.0  # a student that never moves has a loss of 1
MAX_CUT_BITS = 16
MAX_CUTS = 6  # of either kind in a row, without a better window in between


def guard_against_divergence(state: DistillState, loss: float) -> str | None:
    """Go back to the best values where the run has diverged, else remember them where they are.

    To be called after every iteration with its loss; returns what happened, or None. A loss that
    is not finite, or above `EXPLODED`, right after the start or a return is the student's own
    doing: its step size is cut. Otherwise a loss that is not finite, or a window whose mean has
    risen, cuts the learning rates. Every cut in a row is the square of the one before (1/2, 1/4,
    1/16 ...), so that rates wrong by many powers of ten are brought back in a few attempts. Raises
    `DistillationError` after `MAX_CUTS` of one kind in a row.
    """
    untouched = state.adam_count <= 1  # nothing was updated before this loss
    if untouched and not loss <= EXPLODED:
        return _restore(state, f"{_flew_off(loss)} at the start", cut_step=True)
    if not math.isfinite(loss):
        return _restore(state, _flew_off(loss))
    if state.iteration % WINDOW == 0:
        # What came before a return says nothing about the present values.
        mean = float(np.mean(state.losses[-min(WINDOW, max(1, state.adam_count)) :]))
        expected = _expected(state)
        if mean > RISE * expected:
            return _restore(state, f"the matching loss rose from {expected:.3f} to {mean:.3f}")
        if mean < state.best_loss:
            state.remember_best(mean)
    return None


def _flew_off(loss: float) -> str:
    return f"the matching loss is {f'{loss:.3g}' if math.isfinite(loss) else 'not finite'}"


def _expected(state: DistillState) -> float:
    """Return the best window's mean, or what the first window must not exceed by much."""
    if math.isfinite(state.best_loss):
        return state.best_loss
    # The first loss since the start or the last return, before anything was updated.
    first = state.losses[-state.adam_count] if state.adam_count else math.inf
    return max(1.0, first)


def _restore(state: DistillState, reason: str, *, cut_step: bool = False) -> str:
    cuts = state.step_cuts if cut_step else state.rate_cuts
    if cuts >= MAX_CUTS:
        raise DistillationError(
            f"{reason} at iteration {state.iteration}, after {MAX_CUTS} returns to the best "
            "values with lower rates; lower the learning rates or initial_step_size, or choose "
            "other rounds"
        )
    cut = 2.0 ** min(2**cuts, MAX_CUT_BITS)
    state.restore_best()
    if cut_step:
        state.step_cuts += 1
        for values in (state.values, state.best):
            values["log_step"] -= math.log(cut)
        remedy = f"step size divided by {cut:g}"
    else:
        state.rate_cuts += 1
        state.rate_scale /= cut
        remedy = f"learning rates divided by {cut:g}"
    event = f"{reason}; back to the best values, {remedy}"
    logger.warning("iteration %d: %s", state.iteration, event)
    return event
