"""What a local training step costs on this machine, against eager and compiled PyTorch.

    python benchmarks/edge_step.py --json edge_step.json          all configurations, 20 minutes
    python benchmarks/edge_step.py --quick --json edge_step.json  only the headline's, 4 minutes

Every measurement is a fresh process pinned to its cores, with as many threads. The arms take turns,
so that a disturbance hits all of them; compare only numbers of one run. docs/performance.md defines
every figure. Needs g++ for torch.compile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from edge_step_parts import agent, floor
from edge_step_parts.bench import ARMS, COMPILED, HEADLINE, TUNED_EAGER, Bench, Configuration


def with_floor(one: Configuration, rows: dict[str, Any], rates: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration's result: the floor, and every row's distance from it."""
    flop, moved = (
        floor.step_flop(one.spec, one.batch_size),
        floor.step_bytes(one.spec, one.batch_size),
    )
    compute_ms = 1e-6 * flop / rates["best_gflop_per_s"]
    memory_ms = 1e-6 * moved / rates["copy_gb_per_s"]
    floor_ms = max(compute_ms, memory_ms)
    for row in rows.values():
        if "step_ms" in row:
            row["time_over_floor"] = row["step_ms"] / floor_ms
    return {
        "floor": {
            "gflop": 1e-9 * flop,
            "megabytes_moved": 1e-6 * moved,
            "compute_ms": compute_ms,
            "memory_ms": memory_ms,
            "floor_ms": floor_ms,
        },
        "arms": rows,
    }


def show(name: str, result: dict[str, Any]) -> None:
    """Print one configuration's table."""
    print(f"\n{name}; floor {result['floor']['floor_ms']:.2f} ms")
    titles = ("ms/step", "x eager", "x floor", "peak MB", "faults", "grad err", "loss")
    print(f"{'':38}" + "".join(f"{title:>9}" for title in titles))
    for arm, row in result["arms"].items():
        if "skipped" in row:
            print(f"{arm:38}  skipped: {row['skipped'].strip().splitlines()[-1][:100]}")
            continue
        print(
            f"{arm:38}{row['step_ms']:9.2f}{row.get('time_over_tuned_eager', np.nan):9.2f}"
            f"{row['time_over_floor']:9.2f}{row['peak_rss_mb']:9.0f}{row['page_faults_a_step']:9.0f}"
            f"{row['gradient_error']:9.1e}{row['last_loss']:9.4f}"
        )


def chosen(args: argparse.Namespace) -> list[Configuration]:
    """Return the configurations that the options ask for, the headline first."""
    if args.quick:
        return [HEADLINE]
    networks = [("convnet", w, c) for w in args.widths for c in args.channels]
    if args.alexnet:
        networks.append(("alexnet", 128, 3))
    found = [
        Configuration(*network, batch_size, cores)
        for network in networks
        for batch_size in args.batch_sizes
        for cores in args.cores
    ]
    return sorted(found, key=lambda c: c != HEADLINE)


def headline(
    result: dict[str, Any],
    contention: dict[str, Any],
    memory: dict[str, Any],
    costs: dict[str, Any],
) -> dict[str, Any]:
    """Return the seven figures of the best fp32 micro-batch."""
    rows = result["arms"]
    ours = best_of_ours(rows)
    quotients = {
        "vs_tuned_eager": rows[TUNED_EAGER.name]["step_ms"],
        "vs_compile": rows.get(COMPILED.name, {}).get("step_ms"),
        "vs_floor": result["floor"]["floor_ms"],
    }
    return {
        **{k: rows[ours]["step_ms"] / v if v else None for k, v in quotients.items()},
        "agent_peak_mb": memory.get("peak_mb"),
        "import_cpu_s": costs["agent"]["cpu_s"],
        "import_mb": costs["agent"]["peak_mb"],
        "contended_vs_quiet": contention[ours]["contended_vs_quiet"],
    }


def best_of_ours(rows: dict[str, Any]) -> str:
    """Return the name of the fastest fp32 program."""
    ours = [a.name for a in ARMS if a.kind == "program" and not a.option]
    return min((n for n in ours if "step_ms" in rows.get(n, {})), key=lambda n: rows[n]["step_ms"])


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--quick", action="store_true", help="the headline's configuration only")
    parser.add_argument("--widths", type=int, nargs="*", default=[128, 32], help="of the ConvNet")
    parser.add_argument("--channels", type=int, nargs="+", default=[3, 1], help="of the images")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--no-alexnet", dest="alexnet", action="store_false")
    parser.add_argument("--arms", nargs="+", default=[""], metavar="PART", help="of their names")
    parser.add_argument("--repeats", type=int, default=2, help="processes an arm")
    parser.add_argument("--headline-repeats", type=int, default=5)
    parser.add_argument(
        "--programs", type=Path, metavar="DIR", help="keep programs, use those there"
    )
    parser.add_argument("--no-agent", dest="agent", action="store_false")
    return parser.parse_args()


def main() -> None:
    """Prepare, let the arms take turns, print and write the result."""
    args = options()
    cores = sorted(os.sched_getaffinity(0))[:2]
    configurations = [c for c in chosen(args) if c.cores <= len(cores)]
    arms = [a for a in ARMS if a == TUNED_EAGER or any(part in a.name for part in args.arms)]
    results: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = args.programs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, cores, arms)
        names = bench.prepare(configurations)
        bench.say("the floor")
        rates = bench.floor(names, 3, sorted({c.cores for c in configurations}))
        for one in configurations:
            bench.say(one.name)
            repeats = args.headline_repeats if one == HEADLINE else args.repeats
            rows = bench.compare(one, repeats)
            results[one.name] = with_floor(one, rows, rates[str(one.cores)])
            show(one.name, results[one.name])
        if HEADLINE in configurations:
            bench.say("a busy neighbour")
            ours = best_of_ours(results[HEADLINE.name]["arms"])
            pair = [next(a for a in arms if a.name == ours), TUNED_EAGER]
            contention = bench.contention(HEADLINE, pair, 3)
            bench.say("importing the agent, and a whole agent that trains")
            costs = agent.import_costs(5)
            memory = (
                agent.running_agent(HEADLINE.spec, batch_size=HEADLINE.batch_size, threads=2)
                if args.agent
                else {}
            )
            figures = headline(results[HEADLINE.name], contention, memory, costs)
            details = {
                "headline": {"configuration": HEADLINE.name, "ours": ours},
                "contention": contention,
                "agent": memory,
                "import": costs,
            }
    print()
    for name, value in figures.items():
        print(f"{name:20} {'absent' if value is None else round(value, 3)}")
    if args.json:
        machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "cores_used": cores}
        whole = {**figures, **details, **machine, "rates": rates, "configurations": results}
        args.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
