"""The page about a robustness benchmark, for somebody who has to decide on a release by it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server_toolkit.benchmark.goals import in_255ths
from server_toolkit.benchmark.statistics import in_points, rounded
from server_toolkit.report.benchmark_figures import (
    clean_against_robust,
    in_reading_order,
    over_server_images,
    recovery_bars,
    worst_class_bars,
)
from server_toolkit.report.benchmark_pictures import Pictures
from server_toolkit.report.figures import image_grid
from server_toolkit.report.page import document, escaped

Row = Mapping[str, Any]

SHOWN_WARNINGS = 8  # the others are folded away
TOO_WIDE = 1.0  # an interval of an accuracy or a difference of them that leaves everything open

_STYLE = """
main { max-width: 1240px; }
.warnings { background: #fff4e5; border: 1px solid #e0a030; border-radius: 10px;
  padding: .6rem 1rem; margin-top: 1.2rem; }
.warnings h2 { margin: .2rem 0 .4rem; } .warnings ul { margin: .3rem 0; padding-left: 1.2rem; }
.fine { background: #e9f7ef; border-color: #5cb381; }
.pill { border-radius: 99px; padding: .1rem .7rem; font-weight: 600; white-space: nowrap; }
.pill.met { background: #d5f0e0; } .pill.not { background: #fbdcd3; }
.pill.unknown { background: #e4e7eb; }
table.goals td { text-align: left; vertical-align: top; }
table.goals ul { margin: 0; padding-left: 1.1rem; } h3 { margin: 1.6rem 0 .5rem; }
tr.method td { background: #eaf4fb; } tr.floor td, tr.ceiling td { color: #444; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1rem;
  margin-top: 1rem; }
.figures > div { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: .6rem; } .figures h4 { margin: .1rem .3rem .3rem; }
td.better b { color: #00724f; } td.worse b { color: #a33000; } .words { white-space: normal; }
td, td small, th small { white-space: nowrap; }
td:first-child small, table.goals td, table.goals small, td small.words { white-space: normal; }
pre { white-space: pre-wrap; font-size: .8rem; }
"""

_READING = (
    "<b>AutoAttack</b> is the figure that decides: right after PGD and after every part of "
    "AutoAttack (APGD-CE, APGD-T, FAB-T, Square). It rests on fewer images than the others.",
    "<b>Large figure</b>: mean over seeds. <b>±</b>: half the 95 % interval over seeds (Student's "
    "t; the factor is 4.3 for three seeds and 12.7 for two, so it is wide; over 50 points it "
    "leaves everything open). <b>Small range</b>: the 95 % Wilson interval over all seeds' images "
    "together, which takes the models as given.",
    "<b>Recovery</b>: (arm − fedavg) / (client_at − fedavg) in AutoAttack accuracy, the mean of a "
    "ratio for each seed. 1 is what adversarial training on the devices gains, at their expense.",
    "<b>Controls</b> harden in the same way, on the same schedule, without what the method makes. "
    "A method that does not beat its control is worth nothing, whatever it gains over fedavg.",
    "<b>Worst class</b>: the class with the lowest accuracy over all seeds; the lowest of several "
    "noisy figures is a little too low.",
    "<b>Device cost</b>: forward and backward passes on the devices, relative to fedavg, and "
    "measured processor seconds in brackets. <b>Server</b>: seconds of making images and "
    "hardening, for one model.",
)


def render_benchmark_page(result: Mapping[str, Any], pictures: Sequence[Pictures]) -> str:
    """Return one HTML document that needs no other file; `result` is the benchmark's JSON."""
    title = f"Robustness benchmark, preset {result['preset']['name']}"
    body = f"""<h1>{escaped(title)}</h1>
<p class="lead">What the fleet's model gains in robustness when only the server works, beside
controls that do the same without the method.</p>
{_facts(result)}
{_warnings(result["warnings"])}
<section><h2>Goals: met or not</h2>
<div class="card scroll">{_goals(result["goals"])}</div></section>
<section><h2>Methods beside their controls</h2>
<div class="card scroll">{_comparisons(result["comparisons"])}</div></section>
{"".join(_dataset(name, result["rows"], pictures) for name in _datasets(result["rows"]))}
<section><h2>How to read this</h2><div class="card"><ul>
{"".join(f"<li>{line}</li>" for line in _READING)}</ul></div></section>
<section><h2>What was run</h2><div class="card">{_work(result)}</div></section>
"""
    return document(title, body, style=_STYLE)


def _datasets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["dataset"] for row in rows))


def _facts(result: Mapping[str, Any]) -> str:
    preset, work, goals = result["preset"], result["work"], result["goals"]
    found = [goal["status"] for goal in goals]
    statuses = [f"{found.count(s)} {s}" for s in ("met", "not met", "undecided") if s in found]
    facts = (
        ("goals", ", ".join(statuses) or "none judged"),
        ("warnings", str(len(result["warnings"]))),
        ("data sets", ", ".join(entry["dataset"] for entry in result["data"])),
        ("seeds", ", ".join(map(str, preset["seeds"]))),
        ("work done", f"{work['done']} of {work['total']} pieces"),
        ("processor time", _duration(work["cpu_s"])),
    )
    cells = "".join(f"<div><small>{escaped(k)}</small><b>{escaped(v)}</b></div>" for k, v in facts)
    return f'<div class="facts">{cells}</div>'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<div class="warnings fine"><b>No warnings.</b></div>'
    first, rest = warnings[:SHOWN_WARNINGS], warnings[SHOWN_WARNINGS:]
    folded = ""
    if rest:
        folded = f"<details><summary>{len(rest)} more</summary>{_list(rest)}</details>"
    return f'<div class="warnings"><h2>Before you rely on this</h2>{_list(first)}{folded}</div>'


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><b>{escaped(goal['name'])}</b><br><small>{escaped(goal['statement'])}</small></td>"
        f"<td>{_pill(goal['status'])}</td><td>{escaped(goal['summary'])}"
        f"<ul>{''.join(map(_finding, goal['findings']))}</ul></td></tr>"
        for goal in goals
    )
    return (
        "<p class=soft>Decided by means over seeds. Where an interval in brackets reaches below "
        "what is wanted, another set of seeds may decide otherwise.</p>"
        '<table class="goals"><thead><tr><th>goal</th><th></th><th style="text-align:left">'
        f"figures</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _finding(finding: Mapping[str, Any]) -> str:
    return (
        f"<li><small>{escaped(finding['where'])}:</small> {escaped(finding['numbers'])} "
        f"<small>({escaped(finding['status'])})</small></li>"
    )


def _pill(status: str) -> str:
    kind = {"met": "met", "not met": "not"}.get(status, "unknown")
    return f'<span class="pill {kind}">{escaped(status)}</span>'


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Return one row a place, one column a method and size of the server set."""
    if not comparisons:
        return "<p>No method was measured beside its control yet.</p>"
    columns = sorted({(e["server_images"], e["arm"], e["control"]) for e in comparisons})
    heads = [
        f"{escaped(arm)}{f' ({size})' if size else ''}<br><small>− {escaped(control)}</small>"
        for size, arm, control in columns
    ]
    cells = {
        (_where(e), (e["server_images"], e["arm"], e["control"])): _comparison(e)
        for e in comparisons
    }
    rows = [
        f"<tr><td>{escaped(place)}</td>"
        + "".join(cells.get((place, column), "<td></td>") for column in columns)
        + "</tr>"
        for place in dict.fromkeys(map(_where, comparisons))
    ]
    return (
        _table(("AutoAttack points, method − control", *heads), rows)
        + "<p class=soft>Large: the mean over seeds. Below: its 95 % interval over seeds, the "
        "interval over images, the difference in clean points, and what that allows to say. What "
        "the images show and the seeds do not may be these models' luck.</p>"
    )


def _comparison(entry: Mapping[str, Any]) -> str:
    robust, clean = entry["autoattack"], entry["clean"]
    kind = robust["verdict"].split()[0]
    return (
        f'<td class="{escaped(kind)}"><b>{in_points(robust["over_seeds"]["mean"])}</b><br>'
        f"<small>{_seeds(robust['over_seeds']['interval'])}<br>"
        f"{_images(robust['over_images']['interval'])}<br>"
        f"clean {in_points(clean['over_seeds']['mean'])}<br></small>"
        f'<small class="words">{escaped(robust["verdict"])}</small></td>'
    )


def _dataset(name: str, rows: Sequence[Row], pictures: Sequence[Pictures]) -> str:
    own = [row for row in rows if row["dataset"] == name]
    places = list(dict.fromkeys((r["network"], r["partition"], r["epsilon"]) for r in own))
    parts = "".join(
        _place([r for r in own if (r["network"], r["partition"], r["epsilon"]) == place])
        for place in places
    )
    shown = [p for p in pictures if p.dataset == name]
    grids = "".join(
        f"<div><h3>{escaped(p.title)}</h3><p class=soft>{escaped(p.meaning)}</p>"
        f'<img alt="{escaped(p.title)}" src="{image_grid(p.images, p.labels, columns=10)}"></div>'
        for p in shown
    )
    if grids:
        grids = f'<h3>What the server hardened on</h3><div class="cards">{grids}</div>'
    return f"<section><h2>{escaped(name)}</h2>{parts}{grids}</section>"


def _place(rows: Sequence[Row]) -> str:
    first = rows[0]
    seeds, images = "lines: 95 % over seeds", "lines: 95 % over images"
    figures = (
        ("Recovery of methods and controls", seeds, recovery_bars(rows)),
        ("Clean against robust accuracy", images, clean_against_robust(rows)),
        ("What real images on the server add", images, over_server_images(rows)),
        ("All classes (pale) and the worst one (full)", images, worst_class_bars(rows)),
    )
    cards = "".join(
        f"<div><h4>{title} <small>{lines}</small></h4>{svg}</div>" for title, lines, svg in figures
    )
    return (
        f"<h3>{escaped(_where(first))}</h3>"
        f'<div class="card scroll">{_arms(rows)}<p class=soft>Large: mean over seeds, ± half its '
        "95 % interval over seeds. Below: 95 % interval over the images.</p></div>"
        f'<div class="figures">{cards}</div>'
    )


def _arms(rows: Sequence[Row]) -> str:
    cells = []
    for row in in_reading_order(rows):
        measures, cost = row["measures"], row["cost"]
        worst = measures["autoattack"]["worst_class"]
        cells.append(
            f'<tr class="{escaped(row["role"])}"><td>{escaped(row["title"])} '
            f"<small>{escaped(row['role'])}</small><br><small>{escaped(row['meaning'])}</small></td>"
            + "".join(_measure(measures[name]) for name in ("clean", "pgd", "autoattack"))
            + f"<td>{100 * worst['accuracy']:.0f}<br><small>class {worst['class']}, "
            f"{100 * worst['low']:.0f}–{100 * worst['high']:.0f}</small></td>"
            f"{_recovery(row['recovery'])}{_device_cost(cost)}<td>{cost['server_s']:.0f}</td></tr>"
        )
    clean, autoattack = (rows[0]["measures"][name] for name in ("clean", "autoattack"))
    heads = (
        "arm (real images a class)",
        f"clean, %{_counted(clean)}", "PGD, %", f"AutoAttack,&nbsp;%{_counted(autoattack)}",
        "worst class<br>AutoAttack, %",
        "recovery", "device<br>cost", "server,<br>s",
    )  # fmt: skip
    return _table(heads, cells)


def _counted(measure: Mapping[str, Any]) -> str:
    """Say on how many images of a seed a figure rests."""
    images = measure["pooled"]["count"] // measure["count"]
    return f"<br><small>{images:,} images a seed</small>"


def _measure(measure: Mapping[str, Any]) -> str:
    interval, pooled = measure["interval"], measure["pooled"]
    half = ""
    if interval is not None:
        wide = _leaves_all_open(interval)
        half = " ± over 50" if wide else f" ±{50 * (interval[1] - interval[0]):.1f}"
    return (
        f"<td>{100 * measure['mean']:.1f}<small>{half}</small><br>"
        f"<small>{100 * pooled['low']:.1f}–{100 * pooled['high']:.1f}</small></td>"
    )


def _recovery(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return "<td><small>not measured</small></td>"
    if share["mean"] is None:
        return "<td><small>undefined</small></td>"
    interval = share["interval"]
    shown = "<br><small>one seed</small>"
    if interval is not None:  # of fedavg and client_at it is a point, by definition
        low, high = interval
        shown = f"<br><small>{rounded(low, 2)} to {rounded(high, 2)}</small>"
        shown = "" if _is_point(interval) else shown
    left_out = ""
    if share["undefined_seeds"]:
        seeds = ", ".join(map(str, share["undefined_seeds"]))
        left_out = f"<br><small>undefined: seed {seeds}</small>"
    return f"<td>{rounded(share['mean'], 2)}{shown}{left_out}</td>"


def _device_cost(cost: Mapping[str, Any]) -> str:
    relative = cost["relative_to_fedavg"]
    if not relative["passes"]:
        return "<td><small>none</small></td>"
    seconds = "" if not relative["seconds"] else f"<br><small>({relative['seconds']:.1f}×)</small>"
    return f"<td>{relative['passes']:.1f}×{seconds}</td>"


def _work(result: Mapping[str, Any]) -> str:
    kinds = [
        f"<tr><td>{escaped(kind)}</td><td>{entry['pieces']}</td><td>{entry['cpu_s']:.0f}</td>"
        f"<td>{entry['wall_s']:.0f}</td></tr>"
        for kind, entry in result["work"]["by_kind"].items()
    ]
    table = _table(("kind of work", "pieces", "processor, s", "clock, s"), kinds)
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    settings = json.dumps({"preset": result["preset"], "data": result["data"]}, indent=1)
    return (
        f"{table}<p class=soft>{escaped(machine)}</p><details><summary>All settings</summary>"
        f"<pre>{escaped(settings)}</pre></details>"
    )


def _where(entry: Mapping[str, Any]) -> str:
    epsilon = in_255ths(entry["epsilon"])
    return f"{entry['dataset']}, {entry['network']}, {entry['partition']}, ε = {epsilon}"


def _leaves_all_open(interval: Sequence[float]) -> bool:
    return interval[1] - interval[0] > TOO_WIDE


def _is_point(interval: Sequence[float]) -> bool:
    return abs(interval[1] - interval[0]) < 1e-9  # but for rounding


def _seeds(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "one seed"
    if _is_point(interval):
        return "the same with every seed"  # as few images make it; that is no certainty
    return f"seeds {_interval(interval)}" if not _leaves_all_open(interval) else "too few seeds"


def _images(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "one image"
    alike = max(map(abs, interval)) < 1e-9
    return "no image differs" if alike else f"images {_interval(interval)}"


def _interval(interval: Sequence[float]) -> str:
    return f"{in_points(interval[0])} to {in_points(interval[1])}"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>"
