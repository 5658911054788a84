"""Fast adversarial training: PGD-AT with a single step from a random start (FGSM-RS)."""

from __future__ import annotations

from server_toolkit.robust.objectives.inner import Ascent
from server_toolkit.robust.objectives.pgd_at import PgdAt

STEP = 1.25  # α / ε, as Wong et al. choose it


def fast(*, chunk: int | None = None) -> PgdAt:
    """Return CE(q, f(x')) with x' = Π(x + η + 1.25 ε · sign ∇ CE(q, f(x + η))), η ~ U(-ε, ε).

    Wong et al. 2020, algorithm 3. Π projects onto the ε-ball within [0, 1].
    """
    return PgdAt(Ascent(steps=1, step=STEP, chunk=chunk))
