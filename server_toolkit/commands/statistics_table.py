"""A trajectory's statistics as a table with bars, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from server_toolkit.distill.windows import RoundStatistics, Window

BAR = 30


def statistics_table(statistics: Sequence[RoundStatistics], window: Window) -> str:
    """Return a line a round; a star marks the rounds of the window, bars show the score."""
    highest = max((s.score for s in statistics), default=0.0)
    lines = ["  round    length   turn  devices  signal  trust     score"]
    for s in statistics:
        bar = "█" * round(BAR * s.score / highest) if highest else ""
        star = "*" if window.first <= s.round <= window.last else " "
        lines.append(
            f"{star} {s.round:>5} {s.length:>9.4f} {_or_dash(s.turn):>6} {s.devices:>8} "
            f"{_or_dash(s.signal):>7} {s.trust:>6.2f} {s.score:>9.4f} {bar}".rstrip()
        )
    lines.append(f"* rounds {window.first} to {window.last}: {window.reason}")
    return "\n".join(lines)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
