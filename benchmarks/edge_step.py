"""What a local training step costs on this machine, against eager and compiled PyTorch.

    python benchmarks/edge_step.py --json edge_step.json          all configurations, 15 minutes
    python benchmarks/edge_step.py --quick --json edge_step.json  only the headline's, 3 minutes

Every measurement is a fresh process pinned to its cores, with as many threads. The arms take turns,
so that a disturbance hits all of them; compare only numbers of one run. docs/performance.md defines
every figure. Needs g++ for torch.compile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edge_step_parts import agent, floor
from edge_step_parts.arms import WARM_UP_STEPS
from edge_step_parts.processes import ChildError, ask, busy_neighbour

from models import ModelSpec

# Without these, glibc gives freed activations back to the kernel and faults them in again, which
# costs eager about a third. An untuned baseline flatters everything else.
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
MICRO_BATCHES = (1, 4, 16)
STEPS, CONTENDED_STEPS = 16, 10
# Losses of one start and one order of batches: float32 sums in another order differ by far less.
LOSSES_AGREE = 2e-3


@dataclass(frozen=True)
class Arm:
    """One way to train; `micro_batch` is 0 where torch runs the whole batch."""

    name: str
    kind: str
    tuned: bool = False
    micro_batch: int = 0
    quantized: bool = False


ARMS = (
    Arm("eager", "eager"),
    Arm("eager, tuned malloc", "eager", tuned=True),
    Arm("compile, tuned malloc", "compile", tuned=True),
    *(Arm(f"program fp32, micro-batch {m}", "program", micro_batch=m) for m in MICRO_BATCHES),
    *(
        Arm(f"program int8 simulated, micro-batch {m}", "program", micro_batch=m, quantized=True)
        for m in MICRO_BATCHES
    ),
)
TUNED_EAGER, COMPILED = ARMS[1], ARMS[2]


@dataclass(frozen=True)
class Configuration:
    """A network, a batch and a number of cores."""

    architecture: str
    width: int
    channels: int
    batch_size: int
    cores: int

    @property
    def network(self) -> str:
        """What its files are called."""
        name = f"convnet{self.width}" if self.architecture == "convnet" else self.architecture
        return f"{name}-{self.channels}x32x32"

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return f"{self.network}, batch {self.batch_size}, {self.cores} core(s)"

    @property
    def spec(self) -> ModelSpec:
        """The network."""
        normal = {"mean": (0.5,) * self.channels, "std": (0.25,) * self.channels}
        return ModelSpec(
            architecture=self.architecture, channels=self.channels, image_size=32, classes=10,
            width=self.width, **normal,
        )  # fmt: skip


HEADLINE = Configuration("convnet", 128, 3, 16, 2)


class Bench:
    """Prepares programs in a folder and runs arms."""

    def __init__(self, folder: Path, cores: list[int], arms: list[Arm]) -> None:
        self.folder, self.cores, self.arms = folder, cores, arms
        self.skipped: dict[str, str] = {}
        self._begin = time.monotonic()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")

    def say(self, text: str) -> None:
        """Tell of progress."""
        print(f"[{time.monotonic() - self._begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    def prepare(self, configurations: list[Configuration]) -> list[str]:
        """Export, compute references and fill the compiler's cache, as many at once as cores.

        Returns the names of the matrix products for the floor.
        """
        networks = {c.network: c for c in configurations}
        tasks: list[Any] = []
        for name, one in networks.items():
            sizes = sorted({c.batch_size for c in configurations if c.network == name})
            common = {"folder": str(self.folder), "spec": one.spec.to_dict(), "steps": STEPS}
            reference = {"kind": "reference", "name": name, "batch_sizes": sizes}
            tasks.append(lambda r=common | reference: ask("prepare", r))
            for quantized in (False, True):
                arms = [a for a in self.arms if a.kind == "program" and a.quantized == quantized]
                wanted = {_program(one, arm): arm.micro_batch for arm in arms}
                programs = {"kind": "programs", "quantized": quantized, "micro_batches": wanted}
                tasks.append(lambda r=common | programs: self._export(r))
        with ThreadPoolExecutor(len(self.cores)) as pool:
            request = {"kind": "products", "folder": str(self.folder)}
            names = pool.submit(ask, "prepare", request)
            self.say(f"exporting: {len(tasks)} jobs")
            list(pool.map(lambda task: task(), tasks))
            if COMPILED in self.arms:
                self.say(f"compiling: {len(configurations)} jobs")
                list(
                    pool.map(
                        lambda c: self.run(c, COMPILED, steps=WARM_UP_STEPS + 1), configurations
                    )
                )
            return list(names.result()["names"])

    def _export(self, request: dict[str, Any]) -> dict[str, Any]:
        done = ask("prepare", request)
        self.skipped |= done["skipped"]
        for name, reason in done["skipped"].items():
            self.say(f"without {name}: {reason[:100]}")
        return done

    def run(
        self, one: Configuration, arm: Arm, *, steps: int = STEPS, check: bool = False
    ) -> dict[str, Any]:
        """Run one arm once, in a process of its own; with `check`, its gradients too."""
        options = {
            "spec": one.spec.to_dict(),
            "batch_size": one.batch_size,
            "threads": one.cores,
            "steps": steps,
        }
        request = {
            "kind": arm.kind,
            "options": options,
            "start": str(self.folder / f"{one.network}-start.npy"),
            "program": str(self.folder / _program(one, arm)),
            "truth": str(self.folder / f"{one.network}-{one.batch_size}.npy") if check else "",
        }
        environment = {"OMP_NUM_THREADS": str(one.cores), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        if arm.tuned:
            environment |= TUNED_MALLOC
        return ask("arms", request, cores=self.cores[: one.cores], environment=environment)

    def compare(self, one: Configuration, repeats: int) -> dict[str, Any]:
        """Let the arms take turns; returns a row for each, and why an arm is missing."""
        results: dict[str, list[dict[str, Any]]] = {}
        rows: dict[str, Any] = {}
        for repeat in range(repeats):
            for arm in self.arms:
                if reason := self.skipped.get(_program(one, arm)):
                    rows[arm.name] = {"skipped": reason}
                    continue
                try:
                    found = self.run(one, arm, check=repeat == 0)
                except ChildError as error:
                    rows[arm.name] = {"skipped": str(error)}
                    self.skipped[_program(one, arm)] = str(error)
                    self.say(f"{arm.name} failed: {error}")
                    continue
                results.setdefault(arm.name, []).append(found)
        rows |= {name: summary(found) for name, found in results.items()}
        reference = rows.get(TUNED_EAGER.name, {})
        for row in rows.values():
            if "step_ms" in row and "step_ms" in reference:
                row["time_over_tuned_eager"] = row["step_ms"] / reference["step_ms"]
                row["memory_over_tuned_eager"] = row["peak_rss_mb"] / reference["peak_rss_mb"]
                worst = max(_relative(row["losses"], reference["losses"]))
                row["losses_differ"] = worst
                row["losses_agree"] = worst < LOSSES_AGREE
        for row in rows.values():
            row["last_loss"] = row.pop("losses", [None])[-1]
        return {arm.name: rows[arm.name] for arm in self.arms if arm.name in rows}

    def floor(self, names: list[str], repeats: int, counts: Iterable[int]) -> dict[str, Any]:
        """Measure the best matrix-product rate and the bandwidth for each number of cores."""
        found: dict[str, Any] = {}
        for count in counts:
            common = {"folder": str(self.folder), "names": names, "threads": count}
            options: dict[str, Any] = {
                "cores": self.cores[:count],
                "environment": {"OMP_NUM_THREADS": str(count)},
            }
            runs = [ask("floor", common | {"kind": "runtime"}, **options) for _ in range(repeats)]
            torch = ask("floor", common | {"kind": "torch"}, **options)["gflop_per_s"]
            products = [run["gflop_per_s"] for run in runs]
            rates = {name: max(p[name] for p in products) for name in products[0]}
            best = max(rates, key=lambda shape: rates[shape])
            found[str(count)] = {
                "best_gflop_per_s": rates[best],
                "best_product": best,
                "runtime_gflop_per_s": rates,
                "torch_mm_gflop_per_s": torch,
                "copy_gb_per_s": max(o["copy_gb_per_s"] for o in runs),
            }
        return found

    def contention(self, one: Configuration, arms: list[Arm], repeats: int) -> dict[str, Any]:
        """Time a step with and without a busy neighbour on one of its cores, in turns."""
        found: dict[str, Any] = {}
        for _, arm, busy in itertools.product(range(repeats), arms, (False, True)):
            row = found.setdefault(arm.name, {"quiet_ms": [], "contended_ms": []})
            if busy:
                with busy_neighbour(self.cores[0]):
                    result = self.run(one, arm, steps=CONTENDED_STEPS)
            else:
                result = self.run(one, arm, steps=CONTENDED_STEPS)
            row["contended_ms" if busy else "quiet_ms"].append(statistics.median(result["step_ms"]))
        for row in found.values():
            quiet, contended = min(row["quiet_ms"]), statistics.median(row["contended_ms"])
            row["contended_vs_quiet"] = contended / quiet
        return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one row out of an arm's processes; see docs/performance.md for each figure."""
    medians = [statistics.median(f["step_ms"]) for f in found]
    checked = next(f for f in found if "gradient_error" in f)
    return {
        "step_ms": min(medians),
        "min_ms": min(t for f in found for t in f["step_ms"]),
        "median_ms": statistics.median(t for f in found for t in f["step_ms"]),
        "step_ms_repeats": medians,
        "peak_rss_mb": max(f["own_peak_rss_mb"] for f in found),
        "peak_rss_mb_from_outside": max(f["peak_rss_mb"] for f in found),
        "page_faults_a_step": statistics.median(n for f in found for n in f["page_faults"]),
        "heap_growth_bytes": max(f["heap_growth_bytes"] for f in found),
        "peak_growth_mb": max(f["peak_growth_mb"] for f in found),
        "losses": found[0]["losses"],
        **{k: checked[k] for k in checked if k.startswith(("gradient_", "transient_"))},
    }


def _relative(found: list[float], truth: list[float]) -> list[float]:
    return [abs(a - b) / abs(b) for a, b in zip(found, truth, strict=True)]


def _program(one: Configuration, arm: Arm) -> str:
    form = "int8" if arm.quantized else "fp32"
    return f"{one.network}-{form}-{arm.micro_batch}.tsp" if arm.kind == "program" else arm.name


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
    ours = [a.name for a in ARMS if a.kind == "program" and not a.quantized]
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
