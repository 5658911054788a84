"""Small charts as SVG text: bars, stacked bars, lines. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
LABEL = 210  # pixels left of the bars
ROW = 30
PLOT_HEIGHT = 240


def number(value: float) -> str:
    """Return three significant digits without an exponent for everyday sizes."""
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{value:,.0f}"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, max(digits, 0)):.{max(digits, 0)}f}" if digits < 7 else f"{value:.2e}"


@dataclass(frozen=True)
class Bar:
    """A row: its label and its parts (name, value), drawn one after the other."""

    label: str
    parts: tuple[tuple[str, float], ...]
    note: str = ""


def stacked_bars(title: str, bars: Sequence[Bar], *, unit: str, order: Sequence[str]) -> str:
    """Return horizontal bars; a part's colour is that of its place in `order`."""
    names = [n for n in order if any(n == p for b in bars for p, _ in b.parts)]
    longest = max((sum(v for _, v in b.parts) for b in bars), default=0.0) or 1.0
    legend = 26 if len(names) > 1 else 4
    scale = (WIDTH - LABEL - 150) / longest
    body = _legend(names, order) if len(names) > 1 else ""
    for row, bar in enumerate(bars):
        y = legend + row * ROW
        body += f'<text class="label" x="{LABEL - 8}" y="{y + 17}">{escape(bar.label)}</text>'
        x = float(LABEL)
        for name, value in bar.parts:
            width = max(value * scale, 0.0)
            body += (
                f'<rect class="c{order.index(name)}" x="{x:.1f}" y="{y + 4}" width="{width:.1f}" '
                f'height="{ROW - 11}"><title>{escape(name)}: {number(value)} {unit}</title></rect>'
            )
            x += width
        whole = number(sum(v for _, v in bar.parts))
        text = bar.note or f"{whole} {unit}"
        body += f'<text class="value" x="{x + 6:.1f}" y="{y + 17}">{escape(text)}</text>'
    return _figure(title, legend + len(bars) * ROW + 4, body)


@dataclass(frozen=True)
class Line:
    """A curve of points and its name."""

    name: str
    points: tuple[tuple[float, float], ...]


def lines(
    title: str,
    curves: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    bands: Sequence[tuple[str, float, float]] = (),
    level: tuple[str, float] | None = None,
    from_zero: bool = True,
) -> str:
    """Return curves over one axis; `bands` are shaded stretches of x, `level` a dashed line."""
    xs = [x for c in curves for x, _ in c.points] or [0.0, 1.0]
    ys = [y for c in curves for _, y in c.points] + ([level[1]] if level else []) or [0.0, 1.0]
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = (min(0.0, *ys) if from_zero else min(ys)), max(ys)
    high_y += (high_y - low_y) * 0.05 or 1.0
    left, top, right, bottom = 56.0, 34.0, WIDTH - 12.0, 34.0 + PLOT_HEIGHT
    if log_x:
        low_x = max(low_x, 1e-9)
        high_x = max(high_x, low_x * 1.01)

    def place(x: float, y: float) -> tuple[float, float]:
        if log_x:
            part = math.log(max(x, low_x) / low_x) / math.log(high_x / low_x)
        else:
            part = (x - low_x) / ((high_x - low_x) or 1.0)
        return left + part * (right - left), bottom - (y - low_y) / (high_y - low_y) * (
            bottom - top
        )

    names = [c.name for c in curves]
    body = _legend(names, names)
    for name, start, end in bands:
        a, b = place(max(start, low_x), 0)[0], place(min(end, high_x), 0)[0]
        body += (
            f'<rect class="band" x="{a:.1f}" y="{top}" width="{max(b - a, 0):.1f}" '
            f'height="{PLOT_HEIGHT}"><title>{escape(name)}</title></rect>'
        )
    for tick in _ticks(low_y, high_y):
        y = place(low_x, tick)[1]
        body += f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += f'<text class="tick end" x="{left - 6}" y="{y + 4:.1f}">{tick:g}</text>'
    for tick in _log_ticks(low_x, high_x) if log_x else _ticks(low_x, high_x):
        x = place(tick, low_y)[0]
        body += f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        body += f'<text class="tick mid" x="{x:.1f}" y="{bottom + 16}">{tick:g}</text>'
    for index, curve in enumerate(curves):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in curve.points)
        body += f'<polyline class="s{index}" points="{path}"/>'
    if level:
        y = place(low_x, level[1])[1]
        body += f'<line class="level" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += f'<text class="tick end" x="{right}" y="{y - 5:.1f}">{escape(level[0])}</text>'
    body += f'<text class="tick mid" x="{(left + right) / 2}" y="{bottom + 34}">{x_label}</text>'
    body += f'<text class="tick" x="4" y="{top - 8}">{y_label}</text>'
    return _figure(title, bottom + 42, body)


def _figure(title: str, height: float, body: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" aria-label="{escape(title)}">{body}</svg></figure>'
    )


def _legend(names: Sequence[str], order: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    x, text = 4.0, ""
    for name in names:
        text += f'<rect class="c{order.index(name)}" x="{x:.0f}" y="4" width="11" height="11"/>'
        text += f'<text class="tick" x="{x + 16:.0f}" y="14">{escape(name)}</text>'
        x += 34 + 6.3 * len(name)
    return text


def _ticks(low: float, high: float) -> list[float]:
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(f for f in (1, 2, 5, 10) if span / (step * f) <= 6)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t for p in powers for f in (1, 2, 5) if low <= (t := f * 10.0**p) <= high]
