"""The table and the figure of `update_compression.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LAST = 10  # rounds that the final accuracy is the mean of
REFERENCE, OTHER_ORDER = "fp32", "fp32, other order"


def by_arm(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of each arm in order of their seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda r: r["seed"]):
        found.setdefault(run["arm"], []).append(run)
    return found


def final_accuracy(run: dict[str, Any]) -> float:
    """Return the mean accuracy of the last rounds."""
    return float(np.mean(run["accuracy"][-LAST:]))


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each arm: bytes as a part of raw float32 tensors, accuracy, difference.

    The differences are to fp32 of the same seed, in points.
    """
    reference = {r["seed"]: final_accuracy(r) for r in runs if r["arm"] == REFERENCE}
    rows = []
    for name, of_arm in by_arm(runs).items():
        final = [final_accuracy(r) for r in of_arm]
        differences = [100 * (f - reference[r["seed"]]) for f, r in zip(final, of_arm, strict=True)]
        megabytes = [r["uploaded_bytes"][-1] / 1e6 for r in of_arm]
        rows.append(
            {
                "arm": name,
                "seeds": len(of_arm),
                "bytes_of_fp32": float(np.mean([r["bytes_of_fp32"] for r in of_arm])),
                "largest_update_of_fp32": max(r["largest_update_of_fp32"] for r in of_arm),
                "uploaded_megabytes": float(np.mean(megabytes)),
                "final_accuracy": 100 * float(np.mean(final)),
                "differences": differences,
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as Markdown."""
    print("| arm | bytes / raw fp32 | largest update | MB in all | accuracy, % | against fp32 |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['arm']} | {r['bytes_of_fp32']:.4f} | {r['largest_update_of_fp32']:.4f} | "
            f"{r['uploaded_megabytes']:.2f} | {r['final_accuracy']:.2f} | "
            f"{', '.join(f'{d:+.2f}' for d in r['differences'])} |"
        )


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw mean accuracy over uploaded bytes, the seeds' range shaded: quantised, largest."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "trajsyn"
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    found = by_arm(runs)
    encodings = list(dict.fromkeys(n.split(",")[0] for n in found if not n.startswith("fp32")))
    colour_of = dict(zip(encodings, colours, strict=False)) | {"fp32": "black"}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, sharex=True)
    left.set_title("every parameter, rounded", fontsize=11)
    right.set_title("the largest entries only", fontsize=11)
    left.set_ylabel("test accuracy, %")
    for name, of_arm in found.items():
        encoding = name.split(",")[0]
        if name == OTHER_ORDER:
            continue
        megabytes = np.mean([r["uploaded_bytes"] for r in of_arm], axis=0) / 1e6
        percent = 100 * np.array([r["accuracy"] for r in of_arm])
        control = name.endswith("no feedback")
        panels = [right if encoding.startswith("topk") else left]
        for axes in [left, right] if encoding == "fp32" else panels:
            axes.plot(
                megabytes, percent.mean(axis=0), color=colour_of[encoding], label=name,
                lw=1.2 if control else 2, ls="--" if control else "-",
            )  # fmt: skip
            axes.fill_between(
                megabytes, percent.min(axis=0), percent.max(axis=0),
                color=colour_of[encoding], alpha=0.12, lw=0,
            )  # fmt: skip
    best = max(100 * max(r["accuracy"]) for r in runs)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_ylim(best - 35, best + 1)
        axes.set_xlabel("uploaded by all devices so far, MB")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8, loc="upper left")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
