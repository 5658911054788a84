"""The benchmark page's figures, as SVG: arms keep their colours, methods are filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server_toolkit.report.figures import as_svg

Row = Mapping[str, Any]

# Okabe and Ito's colours. A method and its control share a hue, the control is lighter.
COLOURS = {
    "fedavg": "#555555",
    "client_at": "#000000",
    "server_at_real": "#999999",
    "noise_only": "#F0C27A",
    "trajsyn_noise": "#D55E00",
    "server_set_only": "#8CC6EC",
    "trajsyn_server_set": "#0072B2",
}
MORE_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#B8A000")  # for methods that come later
MARKERS = {"floor": "v", "ceiling": "^", "control": "s", "method": "o"}
REFERENCES = ("floor", "ceiling")


def recovery_bars(rows: Sequence[Row]) -> str:
    """Return the share of client_at's gain that every method keeps, its control beside it."""
    shown = [row for row in rows if row["role"] not in REFERENCES]
    figure, axes = _axes("recovery: 0 = fedavg, 1 = client_at")
    for place, row in enumerate(_beside_controls(shown)):
        share = row["recovery"]
        if share is None or share["mean"] is None:
            axes.annotate("undefined", (place, 0.02), ha="center", va="bottom", rotation=90)
            continue
        axes.bar(place, share["mean"], color=colour_of(row["arm"]), width=0.8)
        _error(axes, place, share["mean"], share["interval"])
        axes.annotate(
            f"{share['mean']:.2f}", (place, max(share["mean"], 0)), (9, 2),
            textcoords="offset points", ha="left", fontsize=8,
        )  # fmt: skip
    axes.axhline(0, color="black", lw=0.8)
    axes.axhline(1, color="black", lw=0.8, ls=":")
    _name_bars(axes, _beside_controls(shown))
    _limit(axes, [r["recovery"]["mean"] for r in shown if _has(r["recovery"])], floor=-0.5, top=1.5)
    return as_svg(figure)


def clean_against_robust(rows: Sequence[Row]) -> str:
    """Return clean against AutoAttack accuracy; numbers are the sizes of the server set."""
    figure, axes = _axes("AutoAttack accuracy, %")
    axes.set_xlabel("clean accuracy, %")
    axes.grid(axis="x", alpha=0.25)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = sorted((r for r in rows if r["arm"] == arm), key=lambda r: int(r["server_images"]))
        clean, robust = ([r["measures"][n] for r in own] for n in ("clean", "autoattack"))
        places = [(100 * c["mean"], 100 * a["mean"]) for c, a in zip(clean, robust, strict=True)]
        axes.errorbar(
            [x for x, _ in places],
            [y for _, y in places],
            xerr=_bars(clean),
            yerr=_bars(robust),
            fmt=f"{MARKERS[own[0]['role']]}:",
            color=colour_of(arm),
            ms=7,
            lw=0.8,
            elinewidth=0.5,
            label=arm,
        )
        for row, place in zip(own, places, strict=True):
            if row["server_images"]:
                text, offset = str(row["server_images"]), (6, 4)
                axes.annotate(text, place, offset, textcoords="offset points", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return as_svg(figure)


def over_server_images(rows: Sequence[Row]) -> str:
    """Return AutoAttack accuracy over the size of the server set, references as lines."""
    figure, axes = _axes("AutoAttack accuracy, %")
    sizes = sorted({row["server_images"] for row in rows})
    ticks = {size: place for place, size in enumerate(sizes)}
    for row in rows:
        if row["role"] in REFERENCES:
            level = 100 * row["measures"]["autoattack"]["mean"]
            axes.axhline(level, color=colour_of(row["arm"]), ls="--", lw=1)
            axes.annotate(
                row["title"], (1.0, level), xycoords=("axes fraction", "data"), xytext=(3, -3),
                textcoords="offset points", fontsize=7.5, annotation_clip=False,
            )  # fmt: skip
    for arm in dict.fromkeys(row["arm"] for row in rows if row["role"] not in REFERENCES):
        own = sorted((r for r in rows if r["arm"] == arm), key=lambda r: int(r["server_images"]))
        places = [ticks[row["server_images"]] for row in own]
        measures = [row["measures"]["autoattack"] for row in own]
        middle = [100 * m["mean"] for m in measures]
        axes.errorbar(
            places,
            middle,
            yerr=_bars(measures),
            color=colour_of(arm),
            marker=MARKERS[own[0]["role"]],
            label=arm,
            capsize=2,
            lw=2,
            elinewidth=0.8,
        )
    axes.set_xticks(list(ticks.values()), [str(size) for size in ticks])
    axes.set_xlabel("real images a class on the server")
    axes.set_xlim(-0.4, len(sizes) - 0.6)
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return as_svg(figure)


def worst_class_bars(rows: Sequence[Row]) -> str:
    """Return AutoAttack accuracy of the worst class beside that of all."""
    figure, axes = _axes("AutoAttack accuracy, %")
    ordered = in_reading_order(rows)
    for place, row in enumerate(ordered):
        measure = row["measures"]["autoattack"]
        worst, colour = measure["worst_class"], colour_of(row["arm"])
        axes.bar(place - 0.2, 100 * measure["mean"], color=colour, alpha=0.35, width=0.4)
        axes.bar(place + 0.2, 100 * worst["accuracy"], color=colour, width=0.4)
        spread = (100 * worst["low"], 100 * worst["high"])
        _error(axes, place + 0.2, 100 * worst["accuracy"], spread)
    _name_bars(axes, ordered)
    axes.set_ylim(bottom=0)
    return as_svg(figure)


def colour_of(arm: str) -> str:
    """Return an arm's colour, the same in every figure."""
    return COLOURS.get(arm, MORE_COLOURS[sum(arm.encode()) % len(MORE_COLOURS)])


def in_reading_order(rows: Sequence[Row]) -> list[Row]:
    """Return the references first, then every method behind its control."""
    references = [row for row in rows if row["role"] in REFERENCES]
    return references + _beside_controls([row for row in rows if row["role"] not in REFERENCES])


def _beside_controls(rows: Sequence[Row]) -> list[Row]:
    """Return the rows so that a method follows its control, by size of the server set."""
    order = {row["arm"]: row["control"] or row["arm"] for row in rows}
    return sorted(
        rows, key=lambda row: (row["server_images"], order[row["arm"]], row["role"] == "method")
    )


def _axes(y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _name_bars(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_xticks(
        range(len(rows)), [r["title"] for r in rows], rotation=35, ha="right", fontsize=8
    )
    axes.set_xlim(-0.7, max(len(rows), 1) - 0.3)


def _error(axes: Axes, place: float, middle: float, interval: Sequence[float] | None) -> None:
    if interval is not None:
        low, high = interval
        axes.errorbar(
            place,
            middle,
            yerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
            color="black",
            capsize=2,
            lw=0.8,
        )


def _bars(measures: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Return how far the intervals over images reach below and above the means, in points."""
    below = [100 * max(0.0, m["mean"] - m["pooled"]["low"]) for m in measures]
    above = [100 * max(0.0, m["pooled"]["high"] - m["mean"]) for m in measures]
    return [below, above]


def _has(share: Mapping[str, Any] | None) -> bool:
    return share is not None and share["mean"] is not None


def _limit(axes: Axes, values: Sequence[float], *, floor: float, top: float) -> None:
    """Keep very wide intervals from flattening the bars."""
    axes.set_ylim(max(floor, min([0.0, *values]) - 0.3), min(top, max([1.0, *values]) + 0.3))
