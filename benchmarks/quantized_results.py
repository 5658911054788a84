"""The tables and the figure of `quantized_training.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

DEPLOYED = (
    "ONNX, random shapes", "ONNX, real images", "XNNPACK, random shapes", "XNNPACK, real images",
)  # fmt: skip
REACHED = 0.8  # the accuracy that rounds are counted to

Run = dict[str, Any]


def table(runs: list[Run]) -> list[dict[str, Any]]:
    """Return a row for each network, partition and arm, over its seeds.

    A loss is the accuracy in fp32 less that in int8, of the same weights on the same images, in
    points: `[mean, least, largest]`. None: the export refused one.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["network"], run["partition"], run["arm"]), []).append(run)
    return [
        {
            "network": network,
            "partition": partition,
            "arm": arm,
            "seeds": len(group),
            "accuracy": _spread([100 * r["accuracy"] for r in group]),
            "rounds": [rounds_to(r["curve"]) for r in group],
            "training_cpu_s": float(np.mean([r["training_cpu_s"] for r in group])),
            "loss": {name: _spread([loss(r, name) for r in group]) for name in DEPLOYED},
        }
        for (network, partition, arm), group in groups.items()
    ]


def loss(run: Run, deployed: str) -> float | None:
    """Return how many points an int8 model lost against fp32."""
    found = run["int8_accuracy"][deployed]
    return None if found is None else 100 * (run["accuracy"] - found)


def rounds_to(curve: list[float]) -> int | None:
    """Return after how many rounds `REACHED` was reached; None for never."""
    return next((i for i, found in enumerate(curve, start=1) if found >= REACHED), None)


def _spread(values: list[float | None]) -> list[float] | None:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    return [float(np.mean(known)), min(known), max(known)]


def print_tables(rows: list[dict[str, Any]]) -> None:
    """Print the rows as Markdown."""
    print(f"| network, shares | training | fp32 accuracy, % | rounds to {REACHED:.0%} | ", end="")
    print(" | ".join(f"int8 {name}: points lost" for name in DEPLOYED) + " |")
    print("|---" * (4 + len(DEPLOYED)) + "|")
    for row in rows:
        mean, low, high = row["accuracy"]
        rounds = ", ".join("-" if n is None else str(n) for n in row["rounds"])
        losses = " | ".join(
            "refused" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"
            for found in row["loss"].values()
        )
        print(
            f"| {row['network']}, {row['partition']} | {row['arm']} | "
            f"{mean:.2f} ({low:.2f}-{high:.2f}) | {rounds} | {losses} |"
        )


def draw(runs: list[Run], path: Path) -> None:
    """Draw the first network's accuracy over rounds, and every int8 model's loss as a dot."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "trajsyn"
    arms = list(dict.fromkeys(r["arm"] for r in runs))
    networks = list(dict.fromkeys(r["network"] for r in runs))
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, colour in zip(arms, colours, strict=False):
        for index, partition in enumerate(("iid", "dirichlet")):
            curves = [
                r["curve"] for r in runs
                if (r["network"], r["arm"], r["partition"]) == (networks[0], arm, partition)
            ]  # fmt: skip
            if curves:
                percent, rounds = 100 * np.array(curves), np.arange(1, len(curves[0]) + 1)
                label, style = f"{arm}, {partition}", ("-", "--")[index]
                left.plot(rounds, percent.mean(axis=0), color=colour, label=label, ls=style)
                left.fill_between(
                    rounds, percent.min(axis=0), percent.max(axis=0), color=colour, alpha=0.12, lw=0
                )
    left.set_title(f"ConvNet {networks[0]}, fp32 accuracy", fontsize=11)
    left.set_xlabel("round")
    left.set_ylabel("test accuracy, %")
    left.legend(frameon=False, fontsize=8, loc="lower right")

    for shift, (arm, colour) in enumerate(zip(arms, colours, strict=False)):
        for column, network in enumerate(networks):
            lost = [
                loss(r, deployed)
                for r in runs
                if (r["network"], r["arm"]) == (network, arm)
                for deployed in DEPLOYED
            ]
            known = [v for v in lost if v is not None]
            at = [column + 0.2 * (shift - (len(arms) - 1) / 2)] * len(known)
            label = arm if column == 0 else None
            right.plot(at, known, "o", color=colour, ms=4, alpha=0.6, label=label)
    right.axhline(0, color="black", lw=0.8)
    right.axhline(0.5, color="black", lw=0.8, ls=":")
    right.set_title("points that int8 models lose against fp32 (dotted: target)", fontsize=11)
    right.set_xlim(-0.5, len(networks) - 0.5)
    right.set_xticks(range(len(networks)), networks)
    right.set_xlabel("network")
    right.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.75))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
