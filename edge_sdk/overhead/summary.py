"""From what was measured to a tree of values, each with its kind and source."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edge_sdk.overhead.energy import Idle, above_idle, idle_power, integrate
from edge_sdk.overhead.plan import Arm, Plan
from edge_sdk.overhead.sampler import Sampler
from edge_sdk.overhead.session import Raw
from edge_sdk.overhead.values import (
    Value,
    absent,
    combine,
    derived,
    estimated,
    measured,
    quantile,
)

Span = tuple[float, float, float]
Run = dict[str, Any]
Tree = dict[str, Any]

CLOCK = "monotonic clock"
CPU = "CPU time of the process, its threads and ended children"
MEMORY = "VmHWM of the process, reset before"
PAYLOAD = "MQTT payload bytes, counted by the server's end"
LOOSE_PHASES = ("fetch", "load", "encode", "store", "publish")
STEP_PHASES = ("forward_backward", "attack", "noise", "optimiser")
RELEASE_PHASES = ("release download", "release trial", "release health check")
NO_BROKER = "the update was handed over in memory: there was no MQTT broker"
BROKER_REMEDY = "install mosquitto (it is then started on loopback) or give --broker HOST:PORT"


class Summary:
    """Turns `Raw` into values; everything that asks the sampler is here."""

    def __init__(
        self, raw: Raw, *, plan: Plan, sampler: Sampler, has_broker: bool, update_bytes_note: str
    ) -> None:
        self._raw, self._plan, self._sampler = raw, plan, sampler
        self._has_broker, self._note = has_broker, update_bytes_note
        self._trace = sampler.trace()
        self.idle: Idle | None = idle_power(self._trace, raw.idle) if raw.idle else None

    def power(self) -> Tree:
        """Return what is known of the power sensor, its sampling and the idle device."""
        sampler, interval = self._sampler, self._trace.interval_s
        source = sampler.power_name or "none"
        if sampler.power_name is None:
            missing = sampler.no_power("W")
            return {"sensor": missing, "idle": missing, "sampling_interval": missing}
        idle = (
            absent("W", "the idle device was not measured long enough", "raise --idle")
            if self.idle is None
            else derived(
                self.idle.watts, "W", f"{source}, mean over the idle stretches before and after",
                uncertainty=self.idle.uncertainty_w,
            )
        )  # fmt: skip
        return {
            "sensor": measured(source, "text", sampler.power_covers),
            "idle": idle,
            "sampling_interval": absent("s", "no two samples")
            if interval is None
            else measured(interval, "s", f"{source}, median"),
            "sampler_cpu": measured(
                sampler.cpu_s, "s", "CPU time of the sampling thread (without commands it starts)"
            ),
            "failed_samples": measured(sampler.failures, "1", source),
        }

    def arm(self, arm: Arm) -> Tree:
        """Return everything about one arm."""
        runs = self._raw.arms.get(arm.name, [])
        if not runs:
            return {"title": arm.title}
        phases = {name: self._loose_phase(runs, name) for name in LOOSE_PHASES}
        if not self._has_broker:
            phases["publish"] = {k: absent(v.unit, NO_BROKER, BROKER_REMEDY)
                                 for k, v in phases["publish"].items()}  # fmt: skip
        uploads = [u["size"] for r in runs for u in r["server"]["uploads"]]
        phases["encode"]["bytes"] = quantile(uploads, 0.5, "B", f"size of the upload, {self._note}")
        if self._has_broker:
            phases["publish"]["bytes"] = self._bytes(runs, "bytes_up", ("update chunks", "offer"))
        phases["fetch"]["bytes"] = self._bytes(runs, "bytes_down", ("task", "task files"))
        step = self._step(runs)
        phases |= self._step_phases(runs, step)
        tree: Tree = {
            "title": arm.title,
            "phases": phases,
            "step": step,
            "round": self._round(runs),
            "round_training": quantile(
                [s[1] - s[0] for r in runs for s in r["spans"].get("training", [])],
                0.5,
                "s",
                f"{CLOCK}, all steps of a round",
            ),
            "process": self._process(runs),
        }
        if arm.gets_release:
            tree["release"] = self._release(runs)
        return tree

    def _loose_phase(self, runs: Sequence[Run], name: str) -> Tree:
        spans = [tuple(s) for r in runs for s in r["spans"].get(name, [])]
        return self._phase(spans, [p for r in runs for p in r["peaks"].get(name, [])], name)

    def _phase(self, spans: Sequence[Any], peaks: Sequence[int], name: str) -> Tree:
        if not spans:
            nothing = f"the phase {name} did not happen"
            return {k: absent(u, nothing) for k, u in (("time_median", "s"), ("time_p95", "s"),
                    ("cpu_median", "s"), ("peak_rss", "B"), ("energy", "J"))}  # fmt: skip
        start, end = min(s[0] for s in spans), max(s[1] for s in spans)
        return {
            "time_median": quantile([e - s for s, e, _ in spans], 0.5, "s", CLOCK),
            "time_p95": quantile([e - s for s, e, _ in spans], 0.95, "s", CLOCK),
            "cpu_median": quantile([c for _, _, c in spans], 0.5, "s", CPU),
            "peak_rss": measured(max(peaks), "B", MEMORY)
            if peaks
            else absent("B", "/proc/self/clear_refs cannot be written"),
            "temperature": self._sampler.temperature(start, end),
            "throttling": self._sampler.throttling(start, end),
            "energy": self._energy([(s, e) for s, e, _ in spans], per=len(spans)),
        }

    def _step(self, runs: Sequence[Run]) -> Tree:
        """Values of one optimiser step; each round's first step is left out as warm-up."""
        times, cpus, windows = [], [], []
        for stamps in _rounds(runs):
            for (t0, c0), (t1, c1) in itertools.pairwise(stamps):
                times.append(t1 - t0)
                cpus.append(c1 - c0)
            if len(stamps) > 1:
                windows.append((stamps[0][0], stamps[-1][0]))
        median = quantile(times, 0.5, "s", CLOCK)
        return {
            "time_median": median,
            "time_p95": quantile(times, 0.95, "s", CLOCK),
            "cpu_median": quantile(cpus, 0.5, "s", CPU),
            "images_per_s": combine(
                "1/s", "batch size / median time", [median], lambda t: self._plan.batch_size / t
            ),
            "energy": self._energy(windows, per=len(times)),
        }

    def _step_phases(self, runs: Sequence[Run], step: Tree) -> Tree:
        """Values of the parts of a step: their sum over a step's micro-batches."""
        found: Tree = {}
        for name in STEP_PHASES:
            times, cpus, ends = [], [], []
            for run in runs:
                spans = np.array(run["spans"].get(name, []), float).reshape(-1, 3)
                for stamps in run["steps"]:
                    for (t0, _), (t1, _) in itertools.pairwise(stamps):
                        inside = spans[(spans[:, 0] >= t0) & (spans[:, 1] <= t1)]
                        times.append(float((inside[:, 1] - inside[:, 0]).sum()))
                        cpus.append(float(inside[:, 2].sum()))
                        ends += [t0, t1]
            if not any(times):
                continue
            peaks = [p for r in runs for p in r["peaks"].get(name, [])]
            cpu = quantile(cpus, 0.5, "s", CPU)
            share = "the step's energy by this part's share of the CPU time"
            found[name] = {
                "time_median": quantile(times, 0.5, "s", f"{CLOCK}, sum over a step"),
                "time_p95": quantile(times, 0.95, "s", f"{CLOCK}, sum over a step"),
                "cpu_median": cpu,
                "peak_rss": measured(max(peaks), "B", MEMORY)
                if peaks
                else absent("B", "/proc/self/clear_refs cannot be written"),
                "temperature": self._sampler.temperature(min(ends), max(ends)),
                "throttling": self._sampler.throttling(min(ends), max(ends)),
                "energy": _share(step["energy"], cpu, step["cpu_median"], share),
            }
        return found

    def _round(self, runs: Sequence[Run]) -> Tree:
        """Values of one round, from the task's arrival to the server's receipt."""
        windows, cpus = [], []
        for run in runs:
            last = "publish" if run["spans"].get("publish") else "store"
            pairs = zip(run["spans"].get("fetch", []), run["spans"].get(last, []), strict=False)
            windows += [(first[0], end[1]) for first, end in pairs]
            for i in range(min(len(run["spans"].get("fetch", [])), len(run["steps"]))):
                parts = [run["spans"][n][i][2] for n in ("fetch", "load", "training", "encode",
                         "store", "publish") if i < len(run["spans"].get(n, []))]  # fmt: skip
                cpus.append(sum(parts))
        seconds = [b - a for a, b in windows]
        rounds = f"{self._plan.steps} steps of {self._plan.batch_size} images"
        up = ("update chunks", "offer", "need")  # status messages are the agent's heartbeat
        return {
            "time_median": quantile(seconds, 0.5, "s", f"{CLOCK}, {rounds}"),
            "time_p95": quantile(seconds, 0.95, "s", f"{CLOCK}, {rounds}"),
            "cpu_median": quantile(cpus, 0.5, "s", f"{CPU}, {rounds}"),
            "bytes_up": self._bytes(runs, "bytes_up", up),
            "bytes_down": self._bytes(runs, "bytes_down", ("task", "task files", "need", "done")),
            "energy": self._energy(windows, per=len(windows)),
        }

    def _process(self, runs: Sequence[Run]) -> Tree:
        start, end = min(r["started_s"] for r in runs), max(r["ended_s"] for r in runs)
        whose = "" if self._has_broker else "; the benchmark's server is in the same process"
        return {
            "peak_rss": measured(
                max(r["peak_rss_bytes"] for r in runs), "B",
                f"VmHWM of the agent's process, largest of {len(runs)}{whose}",
            ),
            "cpu": quantile([r["cpu_s"] for r in runs], 0.5, "s", f"{CPU}, start to end"),
            "temperature": self._sampler.temperature(start, end),
            "clock": self._sampler.clock(start, end),
            "throttling": self._sampler.throttling(start, end),
        }  # fmt: skip

    def _release(self, runs: Sequence[Run]) -> Tree:
        """Values of getting and installing one release."""
        tree: Tree = {name.removeprefix("release "): self._loose_phase(runs, name)
                      for name in RELEASE_PHASES}  # fmt: skip
        facts = [r["server"]["release"] for r in runs if r["server"]["release"]]
        verdicts = sorted({f["verdict"] for f in facts})
        windows = [(f["announced_s"], f["judged_s"]) for f in facts]
        cpu = [
            sum(s[2] for n in RELEASE_PHASES for s in r["spans"].get(n, []))
            for r in runs
            if r["server"]["release"]
        ]
        tree["whole"] = {
            "verdict": measured(", ".join(verdicts), "text", "the device's own report")
            if verdicts
            else absent("text", "no release was judged"),
            "time_median": quantile([b - a for a, b in windows], 0.5, "s", CLOCK),
            "cpu_median": quantile(cpu, 0.5, "s", CPU),
            "bytes_down": self._bytes(runs, "bytes_down", ("release", "release files"), per=1),
            "bytes_up": self._bytes(runs, "bytes_up", ("release need", "install"), per=1),
            "trial_peak_rss": measured(
                max(r["children_peak_rss_bytes"] for r in runs),
                "B",
                "largest child of the agent (trial inference), getrusage",
            ),
            "energy": self._energy(windows, per=len(windows)),
        }
        return tree

    def _bytes(
        self, runs: Sequence[Run], way: str, parts: Sequence[str], *, per: int | None = None
    ) -> Value:
        sums = [sum(r["server"][way].get(p, 0) for p in parts) for r in runs]
        count = per or self._plan.rounds
        what = f"{PAYLOAD} ({', '.join(parts)})"
        if count == 1:
            return quantile(sums, 0.5, "B", what)
        return derived(float(np.median(sums)) / count, "B", f"{what} / {count} rounds")

    def _energy(self, windows: Sequence[tuple[float, float]], *, per: int) -> Value:
        """Return joules above idle of all windows together, divided by `per`."""
        sampler = self._sampler
        if sampler.power_name is None:
            return sampler.no_power("J")
        if self.idle is None:
            return absent("J", "the idle baseline is missing", "raise --idle")
        if not windows or not per:
            return absent("J", "nothing was measured")
        joules, variance, samples, missed = 0.0, 0.0, 0, []
        seconds = sum(b - a for a, b in windows)
        for start, end in windows:
            energy = integrate(self._trace, start, end)
            if energy is None:
                missed.append(end - start)
                continue
            net = above_idle(energy, self.idle, end - start)
            joules, variance = joules + net.joules, variance + net.uncertainty_j**2
            samples += net.samples
        if missed:
            interval = self._trace.interval_s or 0.0
            return absent(
                "J",
                f"{len(missed)} of {len(windows)} stretches are shorter ({max(missed):.3g} s) than "
                f"two samples of {sampler.power_name} (one every {interval:.3g} s)",
                "raise --steps",
            )
        return derived(
            joules / per,
            "J",
            f"{sampler.power_name} over {seconds:.3g} s, {samples} samples, idle "
            f"{self.idle.watts:.3g} W subtracted",
            uncertainty=float(np.sqrt(variance)) / per,
        )


def _rounds(runs: Sequence[Run]) -> Iterator[list[tuple[float, float]]]:
    for run in runs:
        yield from run["steps"]


def _share(energy: Value, part: Value, whole: Value, source: str) -> Value:
    if energy.number is None or part.number is None or not whole.number:
        return energy if energy.number is None else absent("J", "no CPU time was measured")
    return estimated(energy.number * min(part.number / whole.number, 1.0), "J", source)
