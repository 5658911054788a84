"""The page about one whole run of the loop: what was made, what it buys, what it cost."""

from __future__ import annotations

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
from server_toolkit.report.page import document, escaped, point_cell


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


def render_loop_page(report: LoopReport, *, main_arm: str) -> str:
    """Return the page as one HTML document that needs no other file."""
    facts = "".join(
        f"<div><small>{escaped(k)}</small><b>{escaped(v)}</b></div>" for k, v in report.summary
    )
    grids = "".join(
        f"<div><h3>{escaped(s.title)}</h3><p class=soft>{escaped(s.meaning)}</p>"
        f'<img alt="{escaped(s.title)}" src="{image_grid(s.images, s.labels, columns=8)}"></div>'
        for s in report.image_sets
    )
    curves = {a.name: a.curve for a in report.arms}
    notes = "".join(f"<li>{escaped(n)}</li>" for n in report.notes)
    return document(
        report.title,
        f"""
<h1>{escaped(report.title)}</h1>
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
""",
    )


def _arm_table(report: LoopReport, main_arm: str) -> str:
    rows = []
    for arm in report.arms:
        kind = "main" if arm.name == main_arm else "control" if arm.is_control else ""
        rows.append(
            f'<tr class="{kind}">'
            f"<td>{escaped(arm.name)}<br><small>{escaped(arm.meaning)}</small></td>"
            f"<td>{point_cell(arm.clean)}</td><td>{point_cell(arm.robust)}</td></tr>"
        )
    return (
        "<table><thead><tr><th>arm</th><th>clean accuracy</th>"
        f"<th>under PGD-20, ε = {report.epsilon:g}</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _device_table(devices: Sequence[DeviceRow]) -> str:
    rows = "".join(
        f"<tr><td>{escaped(d.device)}</td><td>{d.images:,}</td><td>{d.training_s:.1f}</td>"
        f"<td>{d.training_cpu_s:.1f}</td><td>{d.bytes_up:,}</td><td>{d.bytes_down:,}</td>"
        f"<td>{_optional(d.local_accuracy, 100, '.1f')}</td>"
        f"<td>{_optional(d.inference_ms, 1, '.2f')}</td><td>{escaped(d.running)}</td></tr>"
        for d in devices
    )
    heads = (
        "device", "own images", "training, s", "of CPU, s", "bytes up", "bytes down",
        "accuracy on own images, %", "ms an image", "runs now",
    )  # fmt: skip
    cells = "".join(f"<th>{h}</th>" for h in heads)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"


def _optional(value: float | None, factor: float, form: str) -> str:
    return "not measured" if value is None else format(factor * value, form)
