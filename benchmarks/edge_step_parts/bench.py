"""The arms and configurations, and the bench that runs them in turns."""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_step_parts.arms import WARM_UP_STEPS
from edge_step_parts.processes import ChildError, ask, busy_neighbour
from models import ModelSpec

# Without these, glibc gives freed activations back to the kernel and faults them in again, which
# costs eager about a third. An untuned baseline flatters everything else.
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
MICRO_BATCHES = (1, 4, 16)
FORMS = {"fp32": "", "int8 simulated": "quantized", "int8 arithmetic": "int8_arithmetic"}
CONTENDED_STEPS = 10
# Losses of one start and one order of batches: float32 sums in another order differ by far less.
LOSSES_AGREE = 1e-4


@dataclass(frozen=True)
class Arm:
    """One way to train; `micro_batch` is 0 where torch runs the whole batch.

    `option` is what `training_program` is asked for, nothing for fp32.
    """

    name: str
    kind: str
    tuned: bool = False
    micro_batch: int = 0
    option: str = ""


def _program_name(form: str, micro_batch: int) -> str:
    return f"program {form}, micro-batch {micro_batch}"


ARMS = (
    Arm("eager", "eager"),
    Arm("eager, tuned malloc", "eager", tuned=True),
    Arm("compile, tuned malloc", "compile", tuned=True),
    *(
        Arm(_program_name(form, m), "program", micro_batch=m, option=option)
        for form, option in FORMS.items()
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
    def steps(self) -> int:
        """How many steps a process takes; AlexNet's are ten times as long."""
        return 16 if self.architecture == "convnet" else 8

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
            common = {"folder": str(self.folder), "spec": one.spec.to_dict(), "steps": one.steps}
            reference = {"kind": "reference", "name": name, "batch_sizes": sizes}
            tasks.append(lambda r=common | reference: ask("prepare", r))
            for option in FORMS.values():
                arms = [a for a in self.arms if a.kind == "program" and a.option == option]
                wanted = {_program(one, arm): arm.micro_batch for arm in arms}
                programs = {"kind": "programs", "option": option, "micro_batches": wanted}
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
        try:
            done = ask("prepare", request)
        except ChildError as error:
            done = {"skipped": dict.fromkeys(request["micro_batches"], str(error).strip())}
        self.skipped |= done["skipped"]
        for name, reason in done["skipped"].items():
            self.say(f"without {name}: {reason.splitlines()[-1][:100]}")
        return done

    def run(
        self, one: Configuration, arm: Arm, *, steps: int = 0, check: bool = False
    ) -> dict[str, Any]:
        """Run one arm once, in a process of its own; with `check`, its gradients too."""
        options = {
            "spec": one.spec.to_dict(),
            "batch_size": one.batch_size,
            "threads": one.cores,
            "steps": steps or one.steps,
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
        for arm in self.arms:
            fp32 = rows.get(_program_name("fp32", arm.micro_batch), {})
            if arm.option and "step_ms" in rows.get(arm.name, {}) and "step_ms" in fp32:
                rows[arm.name]["time_over_fp32"] = rows[arm.name]["step_ms"] / fp32["step_ms"]
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
            pairs = zip(row["contended_ms"], row["quiet_ms"], strict=True)
            row["contended_vs_quiet"] = statistics.median(c / q for c, q in pairs)
        return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one row out of an arm's processes; see docs/performance.md for each figure."""
    own = max(f["own_peak_rss_mb"] for f in found)
    medians = [statistics.median(f["step_ms"]) for f in found]
    checked = next(f for f in found if "gradient_error" in f)
    return {
        "step_ms": min(medians),
        "min_ms": min(t for f in found for t in f["step_ms"]),
        "median_ms": statistics.median(t for f in found for t in f["step_ms"]),
        "step_ms_repeats": medians,
        "peak_rss_mb": max((f["peak_rss_mb"] for f in found if f is not checked), default=own),
        "own_peak_rss_mb": own,
        "page_faults_a_step": statistics.median(n for f in found for n in f["page_faults"]),
        "heap_growth_bytes": max(f["heap_growth_bytes"] for f in found),
        "peak_growth_mb": max(f["peak_growth_mb"] for f in found),
        "losses": found[0]["losses"],
        **{k: checked[k] for k in checked if k.startswith(("gradient_", "transient_"))},
    }


def _relative(found: list[float], truth: list[float]) -> list[float]:
    return [abs(a - b) / abs(b) for a, b in zip(found, truth, strict=True)]


def _program(one: Configuration, arm: Arm) -> str:
    if arm.kind != "program":
        return arm.name
    return f"{one.network}-{arm.option or 'fp32'}-{arm.micro_batch}.tsp"
