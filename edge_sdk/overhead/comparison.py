"""Arms against each other, uploads byte for byte, the foreground loop beside training."""

from __future__ import annotations

from edge_sdk.overhead.plan import Budget, Plan
from edge_sdk.overhead.session import Raw
from edge_sdk.overhead.summary import CLOCK, Tree
from edge_sdk.overhead.values import absent, derived, measured, quantile, ratio


def against(tree: Tree, reference: Tree) -> Tree:
    """Return an arm's costs as multiples of another's, both in this run."""
    title = reference["title"]
    pairs = {
        "step_time": ("step", "time_median"),
        "step_cpu": ("step", "cpu_median"),
        "step_energy": ("step", "energy"),
        "round_time": ("round", "time_median"),
        "round_cpu": ("round", "cpu_median"),
        "round_energy": ("round", "energy"),
        "bytes_up": ("round", "bytes_up"),
        "peak_rss": ("process", "peak_rss"),
    }
    return {
        name: ratio(tree[a][b], reference[a][b], f"{a} {b} / that of: {title}")
        for name, (a, b) in pairs.items()
    }


def compare_uploads(raw: Raw, first: str, second: str) -> Tree:
    """Return the sha256 of every upload of two arms by round, and whether all are the same."""
    runs = [*raw.arms.get(first, []), *raw.arms.get(second, [])]
    if not raw.arms.get(first) or not raw.arms.get(second):
        return {"identical": absent("bool", f"{first} and {second} were not both measured")}
    rounds: dict[str, Tree] = {}
    for name in (first, second):
        for run in raw.arms[name]:
            for upload in run["server"]["uploads"]:
                row = rounds.setdefault(f"round {upload['round']}", {})
                known = row.get(name)
                text = upload["sha256"]
                if known is not None and text not in str(known.value):
                    text = f"{known.value} {text}"
                row[name] = measured(text, "sha256", "the server's end")
    whole = {tuple((u["round"], u["sha256"]) for u in r["server"]["uploads"]) for r in runs}
    count = sum(len(r["server"]["uploads"]) for r in runs)
    return {
        "identical": measured(
            len(whole) == 1, "bool", f"sha256 of {count} uploads in {len(runs)} processes"
        ),
        "rounds": rounds,
    }


def _budget_title(budget: Budget | None) -> str:
    if budget is None:
        return "no training"
    threads = "1 thread" if budget.threads == 1 else f"{budget.threads} threads"
    part = "" if budget.duty_cycle == 1 else f", {budget.duty_cycle:.0%} of the time"
    return f"{threads}, niceness {budget.niceness}{part}"


def tax(raw: Raw, budgets: dict[str, Budget | None], plan: Plan) -> Tree:
    """Return the foreground loop's latency beside each training budget."""
    period_s, found = 1 / plan.rate_hz, Tree()
    for name, budget in budgets.items():
        runs = raw.tax.get(name, [])
        if not runs:
            continue
        latencies = [s for r in runs for s in r["latencies_s"]]
        missed = sum(s > period_s for s in latencies)
        rates = []
        for run in runs:
            background = run.get("background")
            if background:
                start, end = run["start_s"], run["ended_s"]
                rates.append(sum(start <= t <= end for t in background["steps"]) / (end - start))
        few = "" if len(latencies) >= 100 else "; of so few frames it is nearly the slowest"
        found[name] = {
            "title": _budget_title(budget),
            "latency_median": quantile(latencies, 0.5, "s", f"{CLOCK}, from when a frame was due"),
            "latency_p99": quantile(
                latencies, 0.99, "s", f"{CLOCK}, from when a frame was due{few}"
            ),
            "latency_max": quantile(latencies, 1.0, "s", CLOCK),
            "frames_late": derived(
                missed / len(latencies), "1", f"frames that took over {period_s:.3g} s"
            ),
            "steps_per_s": derived(sum(rates) / len(rates), "1/s", "training steps in that time")
            if rates
            else absent("1/s", "nothing was trained"),
        }
    reference = found.get("none")
    for name, row in found.items():
        if reference is not None and name != "none":
            for q in ("median", "p99"):
                row[f"tax_{q}"] = ratio(
                    row[f"latency_{q}"],
                    reference[f"latency_{q}"],
                    f"latency_{q} / without training",
                )
    return found
