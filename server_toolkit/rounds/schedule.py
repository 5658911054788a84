"""Which rounds start from hardened weights, and before which of them the server distils."""

from __future__ import annotations

from dataclasses import dataclass

FEWEST_ROUNDS = 5  # that leave room for two windows and a round of plain training between them


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Hardening between rounds, which gives the devices nothing more to do; by default none.

    Each window (first, end) of `harden` lets the rounds first <= t < end start from hardened
    weights. Before the rounds in `distil` the server makes a proxy set from what the fleet did
    since the first hardening; until there is one it hardens on the images that distillation would
    start from. Raises `ValueError` for windows out of order or a distillation without segments.
    """

    harden: tuple[tuple[int, int], ...] = ()
    distil: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        edges = [edge for window in self.harden for edge in window]
        rising = all(a < b for a, b in zip(edges[::2], edges[1::2], strict=True))
        if not rising or edges != sorted(edges) or (edges and edges[0] < 1):
            raise ValueError("windows are pairs [first, end] of rising rounds, from 1 on")
        if list(self.distil) != sorted(set(self.distil)):
            raise ValueError("the rounds to distil before must rise")
        if self.distil and not (edges and self.distil[0] > edges[0]):
            raise ValueError("the first round to distil before must follow a hardened round")

    @classmethod
    def recommended(cls, rounds: int) -> Schedule:
        """Return the schedule of docs/robustness.md for a run of so many rounds.

        An early window makes the model robust enough for its path to be worth distilling, three
        times; a late window hardens on what was distilled. Shorter runs than `FEWEST_ROUNDS` have
        none.
        """
        if rounds < FEWEST_ROUNDS:
            return cls()
        once = max(2, round(0.25 * rounds))
        twice = max(once + 1, round(0.45 * rounds))
        late = max(twice + 1, round(0.7 * rounds))
        return cls(harden=((1, late), (late, rounds)), distil=(once, twice, late))

    def hardens_before(self, number: int, *, rounds: int) -> bool:
        """Say whether round `number` of `rounds` starts from hardened weights.

        Never the first; and what follows the last is the pipeline.
        """
        return number < rounds and any(first <= number < end for first, end in self.harden)
