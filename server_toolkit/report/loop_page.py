"""The page about one whole run of the loop: what was made, what it buys, what it cost."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server_toolkit.report.figures import (
    Point,
    accuracy_by_round,
    image_grid,
    robustness_by_epsilon,
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the comparison. Accuracies come with their 95 % intervals."""

    name: str
    meaning: str
    is_control: bool
    clean: Point
    robust: Point
    curve: Mapping[float, Point]


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """What one device did, sent and runs."""

    device: str
    images: int
    bytes_up: int
    bytes_down: int
    training_s: float
    training_cpu_s: float
    running: str
    local_accuracy: float | None
    inference_ms: float | None


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images to look at: `(N, C, H, W) float32 in [0, 1]` and the class of each."""

    title: str
    meaning: str
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LoopReport:
    """Everything the page shows."""

    title: str
    summary: Sequence[tuple[str, str]]
    epsilon: float
    arms: Sequence[Arm]
    image_sets: Sequence[ImageSet]
    accuracy_by_round: Sequence[float]
    devices: Sequence[DeviceRow]
    notes: Sequence[str]


_STYLE = """
:root { color-scheme: light; --line: #d8dce2; --soft: #5b6573; --accent: #0072B2; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: #16202c; background: #f6f7f9; margin: 0; }
main { max-width: 1040px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
p.lead, .soft { color: var(--soft); }
section > .card, .cards > div { background: #fff; border: 1px solid var(--line);
  border-radius: 10px; padding: 1rem; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.2rem; }
.facts div { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: .6rem 1rem; min-width: 8.5rem; }
.facts b { display: block; font-size: 1.25rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .42rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft); }
tr.control td { background: #fafafa; } tr.main td { background: #eaf4fb; font-weight: 600; }
.scroll { overflow-x: auto; } svg, img { max-width: 100%; height: auto; display: block; }
svg { margin: 0 auto; }
.cards h3 { margin: 0; } td:first-child { white-space: nowrap; }
td small { white-space: normal; } img { image-rendering: pixelated; border-radius: 4px; }
small { color: var(--soft); font-weight: 400; }
"""


def render_loop_page(report: LoopReport, *, main_arm: str) -> str:
    """Return the page as one HTML document that needs no other file."""
    facts = "".join(f"<div><small>{_e(k)}</small><b>{_e(v)}</b></div>" for k, v in report.summary)
    grids = "".join(
        f"<div><h3>{_e(s.title)}</h3><p class=soft>{_e(s.meaning)}</p>"
        f'<img alt="{_e(s.title)}" src="{image_grid(s.images, s.labels, columns=8)}"></div>'
        for s in report.image_sets
    )
    curves = {a.name: a.curve for a in report.arms}
    notes = "".join(f"<li>{_e(n)}</li>" for n in report.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{_e(report.title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><main>
<h1>{_e(report.title)}</h1>
<p class="lead">Devices trained on their own images. The server saw weight updates only, distilled a
proxy set from them, hardened the model on it and sent it back, signed.</p>
<div class="facts">{facts}</div>
<section><h2>What it buys: accuracy with and without an attacker</h2>
<div class="card scroll">{_arm_table(report, main_arm)}</div></section>
<section><h2>Robustness by attack size</h2>
<div class="card">{robustness_by_epsilon(curves)}</div></section>
<section><h2>The images the server made</h2><div class="cards">{grids}</div></section>
<section><h2>Accuracy by round</h2>
<div class="card">{accuracy_by_round(report.accuracy_by_round)}</div></section>
<section><h2>What it cost on each device, and what it runs now</h2>
<div class="card scroll">{_device_table(report.devices)}</div></section>
<section><h2>How to read this</h2><ul>{notes}</ul></section>
</main></body></html>
"""


def _arm_table(report: LoopReport, main_arm: str) -> str:
    rows = []
    for arm in report.arms:
        kind = "main" if arm.name == main_arm else "control" if arm.is_control else ""
        rows.append(
            f'<tr class="{kind}"><td>{_e(arm.name)}<br><small>{_e(arm.meaning)}</small></td>'
            f"<td>{_point(arm.clean)}</td><td>{_point(arm.robust)}</td></tr>"
        )
    return (
        "<table><thead><tr><th>arm</th><th>clean accuracy</th>"
        f"<th>under PGD-20, ε = {report.epsilon:g}</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _device_table(devices: Sequence[DeviceRow]) -> str:
    rows = "".join(
        f"<tr><td>{_e(d.device)}</td><td>{d.images:,}</td><td>{d.training_s:.1f}</td>"
        f"<td>{d.training_cpu_s:.1f}</td><td>{d.bytes_up:,}</td><td>{d.bytes_down:,}</td>"
        f"<td>{_optional(d.local_accuracy, 100, '.1f')}</td>"
        f"<td>{_optional(d.inference_ms, 1, '.2f')}</td><td>{_e(d.running)}</td></tr>"
        for d in devices
    )
    heads = (
        "device", "own images", "training, s", "of CPU, s", "bytes up", "bytes down",
        "accuracy on own images, %", "ms an image", "runs now",
    )  # fmt: skip
    cells = "".join(f"<th>{h}</th>" for h in heads)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"


def _point(point: Point) -> str:
    middle, low, high = (100 * p for p in point)
    return f"{middle:.1f} %<br><small>{low:.1f} to {high:.1f}</small>"


def _optional(value: float | None, factor: float, form: str) -> str:
    return "not measured" if value is None else format(factor * value, form)


def _e(text: object) -> str:
    return html.escape(str(text))
