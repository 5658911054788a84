"""The benchmark's document as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from edge_sdk.overhead.svg import Bar, Line, lines, number, stacked_bars

Tree = dict[str, Any]

STEP_PARTS = {
    "forward_backward": "forward + backward",
    "attack": "attack (PGD)",
    "noise": "noise",
    "optimiser": "optimiser",
}
ROUND_PARTS = {
    "fetch": "fetch",
    "load": "load",
    "training": "training",
    "encode": "encode",
    "store": "store",
    "publish": "publish",
}
REST = "rest"
BUSY_LOAD = 0.25  # load average a core from which a warning is due
RATIOS = {
    "step_time": "time of a step",
    "step_cpu": "CPU time of a step",
    "step_energy": "energy of a step",
    "round_time": "time of a round",
    "round_cpu": "CPU time of a round",
    "round_energy": "energy of a round",
    "bytes_up": "bytes sent a round",
    "peak_rss": "peak memory",
}
SCALES = {"s": [(1e-6, "µs"), (1e-3, "ms"), (1.0, "s")], "B": [(1, "B"), (1e3, "kB"), (1e6, "MB")],
          "J": [(1e-3, "mJ"), (1.0, "J")], "W": [(1e-3, "mW"), (1.0, "W")]}  # fmt: skip
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--soft:#5b6470;--line:#dfe3e8;--card:#f6f7f9;
--c0:#2f6fde;--c1:#d9480f;--c2:#7b3fc4;--c3:#16907a;--c4:#b8860b;--c5:#a8326e;--c6:#8a939e;
--good:#12805c;--bad:#c2261c}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e6e9ed;--soft:#9aa4b0;--line:#2c333b;
--card:#1c2127;--c0:#6ea2ff;--c1:#ff8a4c;--c2:#b68cf2;--c3:#4cc7ae;--c4:#e0b84a;--c5:#ee7fb4;
--c6:#7d8794;--good:#4cc79b;--bad:#ff7b72}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,sans-serif}main{max-width:60rem;margin:auto;padding:1.5rem}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
p,li{max-width:46rem}.soft,figcaption{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr));gap:.7rem;
margin:1rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}
.card b{display:block;font-size:1.35rem}.card span{color:var(--soft);font-size:.85rem}
.good{color:var(--good)}.bad{color:var(--bad)}
table{border-collapse:collapse;width:100%;font-size:.87rem}th,td{text-align:left;
padding:.28rem .6rem;
border-bottom:1px solid var(--line);vertical-align:top}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap}.wide{overflow-x:auto}
.ratios th.n{white-space:normal;max-width:8rem}.ratios td{white-space:nowrap}
code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}
.kind{border:1px solid var(--line);border-radius:.8rem;padding:0 .5rem;font-size:.78rem}
.estimated{color:var(--c4)}.absent{color:var(--soft)}
figure{margin:1rem 0}svg{width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--fg)}.label{text-anchor:end}.tick{fill:var(--soft)!important}
.end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:var(--line)}.band{fill:var(--soft);opacity:.13}
.level{stroke:var(--soft);stroke-dasharray:5 4}polyline{fill:none;stroke-width:2}
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}.c4{fill:var(--c4)}
.c5{fill:var(--c5)}.c6{fill:var(--c6)}.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}
.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}details{margin:.5rem 0}summary{cursor:pointer}
.warning{border-left:4px solid var(--bad);padding:.3rem .9rem;background:var(--card)}
"""


def report_html(document: Tree) -> str:
    """Return the page; `document` is what `bench.run` returns or its JSON read back."""
    parts = [
        _head(document),
        _warnings(document),
        _cards(document),
        _overhead(document),
        _arms(document),
        _tax(document),
        _power(document),
        _absent(document),
        _all_values(document),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Training on this device: what it costs</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def show(value: Tree) -> str:
    """Return a value with a fitting unit, or "absent"."""
    found = value["value"]
    if found is None:
        return "absent"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, str):
        return found
    unit = value["unit"]
    factor, name = next(
        ((f, n) for f, n in reversed(SCALES.get(unit, [(1.0, "" if unit == "1" else unit)]))
         if abs(found) >= f), SCALES.get(unit, [(1.0, "" if unit == "1" else unit)])[0],
    )  # fmt: skip
    text = f"{number(found / factor)} {name}".strip()
    spread = value.get("uncertainty")
    return f"{text} ± {number(spread / factor)}" if spread is not None else text


def _head(document: Tree) -> str:
    subject, machine = document["subject"], document["machine"]
    names = [machine[k] for k in ("model", "processor") if machine[k]["value"] is not None]
    cores, options = show(machine["cores"]), document["options"]
    return (
        "<h1>Training on this device: what it costs</h1>"
        f'<p class="soft">{escape(", ".join(str(n["value"]) for n in names) or "this machine")}, '
        f"{cores} cores · {escape(show(subject['network']))} · batch {options['batch_size']}, "
        f"{options['threads']} thread(s), {options['repeats']} × {options['rounds']} rounds of "
        f"{options['steps']} steps · {escape(document['made_at'])}</p>"
    )


def _warnings(document: Tree) -> str:
    notes = []
    if not document["complete"]:
        notes.append("This run was interrupted or parts of it failed; what is missing says so.")
    notes += document["failures"]
    load = document["machine"]["load_before"]["value"]
    if load is not None and load > BUSY_LOAD:
        notes.append(
            f"The machine was busy before the run (load {number(load)} a core): compare only "
            "values of this page with each other."
        )
    return "".join(f'<p class="warning">{escape(n)}</p>' for n in notes)


def _cards(document: Tree) -> str:
    base = document["arms"].get("federated", {})
    cards = []
    identical = document["uploads"]["identical"]["value"]
    if identical is not None:
        word = '<b class="good">identical</b>' if identical else '<b class="bad">different</b>'
        cards.append(f"{word}<span>uploads with and without TrajSyn</span>")
    if "step" in base:
        cards.append(f"<b>{show(base['step']['time_median'])}</b><span>a training step</span>")
        peak = show(base["process"]["peak_rss"])
        cards.append(f"<b>{peak}</b><span>peak memory of the agent</span>")
        energy = base["step"]["energy"]
        text, _, spread = show(energy).partition(" ± ")
        spread = f" (± {spread})" if spread else ""
        cards.append(f"<b>{text}</b><span>energy of a step, above idle{spread}</span>")
    pgd = document["arms"].get("pgd10", {}).get("against_federated")
    if pgd and pgd["step_time"]["value"] is not None:
        times = number(pgd["step_time"]["value"])
        cards.append(f"<b>{times} ×</b><span>the time of a step, were the device to train "
                     "adversarially itself (PGD-10)</span>")  # fmt: skip
    beside = document["tax"].get("default", {})
    if beside.get("tax_p99", {}).get("value") is not None:
        cards.append(
            f"<b>{number(beside['tax_p99']['value'])} ×</b><span>p99 latency of a foreground loop "
            "beside training (default budget)</span>"
        )
    return f'<div class="cards">{"".join(f"<div class=card>{c}</div>" for c in cards)}</div>'


def _overhead(document: Tree) -> str:
    uploads, tree = document["uploads"], document["arms"].get("trajsyn", {})
    text = "<h2>What TrajSyn adds on the device</h2>"
    rounds = uploads.get("rounds", {})
    if rounds:
        text += (
            "<p>The same agent, data, seed and tasks; with TrajSyn the server also sends a "
            "release between two rounds, as its hardened model comes, and the "
            "device installs it. Every upload is compared by its sha256.</p>"
            "<div class=wide><table><tr><th><th>federated client alone<th>with TrajSyn</tr>"
        )
        for name, row in rounds.items():
            cells = "".join(
                f"<td><code>{escape(str(row[a]['value'])[:24]) if a in row else '-'}…</code>"
                for a in ("federated", "trajsyn")
            )
            text += f"<tr><td>{escape(name)}{cells}</tr>"
        text += "</table></div>"
    whole = tree.get("release", {}).get("whole")
    if whole and whole["verdict"]["value"] is not None:
        text += (
            "<p>Installing one release, whoever trained it, cost "
            f"<b>{show(whole['bytes_down'])}</b> of download, <b>{show(whole['cpu_median'])}</b> "
            f"of CPU time and <b>{show(whole['time_median'])}</b>; energy: "
            f"{escape(show(whole['energy']))}. A fleet without TrajSyn pays the same for each "
            "model that it rolls out.</p>"
        )
    elif not rounds:
        text += f"<p>{escape(uploads['identical'].get('reason', ''))}</p>"
    return text


def _arms(document: Tree) -> str:
    arms = {n: t for n, t in document["arms"].items() if "step" in t}
    if not arms:
        return ""
    bars, order = [], [*STEP_PARTS.values(), REST]
    for tree in arms.values():
        parts = [
            (label, 1e3 * tree["phases"][name]["time_median"]["value"])
            for name, label in STEP_PARTS.items()
            if name in tree["phases"]
        ]
        whole = tree["step"]["time_median"]["value"]
        if whole is None:
            continue
        rest = max(0.0, 1e3 * whole - sum(v for _, v in parts))
        ratio = tree.get("against_federated", {}).get("step_time", {}).get("value")
        note = f"{number(1e3 * whole)} ms" + (f"  ({number(ratio)} ×)" if ratio else "")
        bars.append(Bar(tree["title"], (*parts, (REST, rest)), note))
    text = "<h2>The arms</h2>" + stacked_bars(
        "Where a training step's time goes: medians, in milliseconds", bars, unit="ms", order=order
    )
    return text + _round_bars(arms) + _ratio_table(arms, document)


def _round_bars(arms: Tree) -> str:
    bars, order = [], list(ROUND_PARTS.values())
    for tree in arms.values():
        phases, parts = tree["phases"], []
        steps = tree["step"]["time_median"]["value"]
        for name, label in ROUND_PARTS.items():
            value = phases.get(name, {}).get("time_median", {}).get("value")
            if name == "training":
                value = tree["round_training"]["value"] if "round_training" in tree else None
            if value is not None:
                parts.append((label, value))
        if steps is not None and parts:
            bars.append(Bar(tree["title"], tuple(parts)))
    return stacked_bars(
        "A round, from the task's arrival to the server's receipt: medians of its parts, in "
        "seconds", bars, unit="s", order=order,
    )  # fmt: skip


def _ratio_table(arms: Tree, document: Tree) -> str:
    rows = ""
    for name, label in RATIOS.items():
        cells = "".join(
            f"<td class=n>{show(t['against_federated'][name])}"
            if t.get("against_federated", {}).get(name, {}).get("value") is not None
            else "<td class='n absent'>absent"
            for t in arms.values()
        )
        rows += f"<tr><td>{label}{cells}</tr>"
    heads = "".join(f"<th class=n>{escape(t['title'])}" for t in arms.values())
    missing = "".join(
        f"<li><b>{escape(t['title'])}</b>: {escape(t['absent']['reason'])}; "
        f"{escape(t['absent'].get('remedy', ''))}"
        for t in document["arms"].values()
        if "absent" in t
    )
    return (
        "<p>Costs as multiples of the federated client alone, in this run. Time and energy of the "
        "first two differ only by chance: the work is the same.</p>"
        f"<div class=wide><table class=ratios><tr><th>{heads}</tr>{rows}</table></div>"
        + (f"<p>Not measured:</p><ul>{missing}</ul>" if missing else "")
    )


def _tax(document: Tree) -> str:
    tax = document["tax"]
    if "absent" in tax:
        return f"<h2>Training tax</h2><p>{escape(tax['absent']['reason'])}</p>"
    rate, rows, curves = document["options"]["rate_hz"], "", []
    for name, row in tax.items():
        cells = "".join(
            f"<td class=n>{_cell(row, k)}"
            for k in ("latency_median", "latency_p99", "tax_p99", "frames_late", "steps_per_s")
        )
        rows += f"<tr><td>{escape(row['title'])}{cells}</tr>"
        samples = sorted(1e3 * s for s in document["series"]["latency_s"].get(name, []))
        points = tuple((s, 100 * (i + 1) / len(samples)) for i, s in enumerate(samples))
        curves.append(Line(row["title"], points))
    return (
        "<h2>Training tax: a foreground loop beside training</h2>"
        f"<p>One image every {number(1e3 / rate)} ms through "
        f"{escape(show(document['subject']['inference_model']))}, in a process of its own. A "
        "frame's latency counts from when it was due, so waiting for the frame before counts "
        "too.</p><div class=wide><table><tr><th>training beside it<th class=n>median<th class=n>"
        "p99<th class=n>p99, times that without<th class=n>late frames<th class=n>training steps "
        f"a second</tr>{rows}</table></div>"
        + lines(
            "Share of frames answered within a time, in percent", curves,
            x_label="latency in milliseconds (logarithmic)", y_label="%", log_x=True,
        )
    )  # fmt: skip


def _cell(row: Tree, name: str) -> str:
    value = row.get(name)
    if name == "frames_late" and value is not None and value["value"] is not None:
        return f"{value['value']:.1%}"
    return "-" if value is None or value["kind"] == "absent" else show(value)


def _power(document: Tree) -> str:
    power, series = document["power"], document["series"]
    text = "<h2>Power and temperature</h2>"
    bands = [(n, a, b) for n, a, b in series["runs"]]
    if power["sensor"]["value"] is None:
        text += f"<p>{escape(power['sensor']['reason'])}. <b>What to do:</b> "
        text += f"{escape(power['sensor'].get('remedy', ''))}.</p>"
    else:
        idle = power["idle"]["value"]
        text += (
            f"<p>{escape(show(power['sensor']))} sees {escape(power['sensor']['source'])}. "
            f"Idle: {escape(show(power['idle']))}; a sample every "
            f"{escape(show(power['sampling_interval']))}.</p>"
        )
        points = tuple(zip(series["power"]["t_s"], series["power"]["w"], strict=True))
        text += lines(
            "Power while the arms ran (shaded)", [Line("power", points)], x_label="seconds",
            y_label="W", bands=bands, level=None if idle is None else ("idle", idle),
        )  # fmt: skip
    if len(series["temperature"]) > 1:
        curve = Line("processor", tuple((t, c) for t, c in series["temperature"]))
        text += lines(
            "Temperature of the processor while the arms ran (shaded)", [curve],
            x_label="seconds", y_label="°C", bands=bands, from_zero=False,
        )  # fmt: skip
    return text


def _walk(tree: Any, path: str = "") -> Iterator[tuple[str, Tree]]:
    """Yield every value of the document with its path."""
    if isinstance(tree, dict):
        if "kind" in tree and "source" in tree:
            yield path, tree
            return
        for name, item in tree.items():
            if name not in ("options", "series"):
                yield from _walk(item, f"{path}.{name}" if path else name)


def _absent(document: Tree) -> str:
    """List what could not be had, grouped by reason, and what to do."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path, value in _walk(document):
        if value["kind"] == "absent":
            key = (value["reason"], value.get("remedy", ""))
            groups.setdefault(key, []).append(path)
    if not groups:
        return "<h2>What is absent</h2><p>Nothing.</p>"
    rows = "".join(
        f"<tr><td>{escape(reason)}<td>{escape(remedy) or '-'}<td>"
        f"<details><summary>{len(paths)} value(s)</summary><code>{escape(', '.join(paths))}</code>"
        "</details></tr>"
        for (reason, remedy), paths in groups.items()
    )
    return (
        "<h2>What is absent, why, and what to do</h2><div class=wide><table><tr><th>why"
        f"<th>what to do<th>missing</tr>{rows}</table></div>"
    )


def _all_values(document: Tree) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(path)}</code><td class=n>"
        f"{escape(show(value)) if value['kind'] != 'absent' else '-'}"
        f'<td><span class="kind {value["kind"]}">{value["kind"]}</span><td>'
        f"{escape(value['source'] if value['kind'] != 'absent' else value['reason'])}</tr>"
        for path, value in _walk(document)
    )
    return (
        "<h2>Every value, its kind and its source</h2><p><b>measured</b>: read from a clock, "
        "counter or sensor. <b>derived</b>: exact arithmetic on measured values. <b>estimated</b>: "
        "rests on the assumption named. <b>absent</b>: there is none.</p><details><summary>Show "
        f"all values</summary><div class=wide><table><tr><th>value<th class=n><th>kind<th>source"
        f"</tr>{rows}</table></div></details>"
    )
