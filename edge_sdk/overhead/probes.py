"""Stop-watches around the parts of the real client, put in from outside while a benchmark runs.

The client itself knows nothing of being measured. A probe costs a few microseconds a call.
"""

from __future__ import annotations

import functools
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEAKS_MEASURED = 3  # times a phase; resetting and reading the peak takes longer than a stop-watch
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): writing 5 to clear_refs resets VmHWM


def cpu_s() -> float:
    """Return the CPU time of this process, all threads, and of its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_rss_bytes() -> int | None:
    """Return the most memory that was resident since the last reset (VmHWM)."""
    try:
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


@dataclass
class Recorder:
    """What happened when: `spans[phase]` holds (start, end, CPU seconds), monotonic times.

    `steps[i]` holds (time, CPU seconds so far) at the end of each optimiser step of round i.
    """

    spans: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    peaks: dict[str, list[int]] = field(default_factory=dict)
    steps: list[list[tuple[float, float]]] = field(default_factory=list)
    whole_peak: int = 0
    _marks: dict[str, tuple[float, float, bool]] = field(default_factory=dict)
    _inside: set[str] = field(default_factory=set)

    @contextmanager
    def span(self, phase: str, *, within: str | None = None) -> Iterator[None]:
        """Time a block as `phase`; nothing is noted while a phase `within` runs around it."""
        if within in self._inside:
            yield
            return
        watched = self._watch_memory(phase)
        self._inside.add(phase)
        cpu, start = cpu_s(), time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()
            self.spans.setdefault(phase, []).append((start, end, cpu_s() - cpu))
            self._inside.discard(phase)
            self._note_peak(phase, watched=watched)

    def begin(self, phase: str) -> None:
        """Start a phase that ends elsewhere; a second start before its end does not count."""
        if phase not in self._marks:
            watched = self._watch_memory(phase)
            self._marks[phase] = (time.monotonic(), cpu_s(), watched)

    def end(self, phase: str) -> None:
        """End a phase; without its start nothing is noted."""
        mark = self._marks.pop(phase, None)
        if mark is not None:
            now = time.monotonic()
            self.spans.setdefault(phase, []).append((mark[0], now, cpu_s() - mark[1]))
            self._note_peak(phase, watched=mark[2])

    def is_open(self, phase: str) -> bool:
        """Say whether a phase was begun and not ended."""
        return phase in self._marks

    def wrap(self, owner: Any, name: str, phase: str, *, within: str | None = None) -> None:
        """Replace a function or method by one that is timed as `phase`."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(phase, within=within):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)

    def before(self, owner: Any, name: str, *notes: Callable[[], None]) -> None:
        """Call `notes` before a function or method."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def noting(*args: Any, **kwargs: Any) -> Any:
            for note in notes:
                note()
            return inner(*args, **kwargs)

        setattr(owner, name, noting)

    def after(self, owner: Any, name: str, *notes: Callable[[], None]) -> None:
        """Call `notes` after a function or method."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def noting(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            for note in notes:
                note()
            return result

        setattr(owner, name, noting)

    def _watch_memory(self, phase: str) -> bool:
        """Reset the peak if this phase's is still to be measured; say whether it is."""
        if len(self.peaks.setdefault(phase, [])) >= PEAKS_MEASURED:
            return False
        self.whole_peak = max(self.whole_peak, peak_rss_bytes() or 0)
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
        except OSError:
            return False
        return True

    def _note_peak(self, phase: str, *, watched: bool) -> None:
        if watched and (peak := peak_rss_bytes()) is not None:
            self.peaks[phase].append(peak)

    def to_json(self) -> dict[str, Any]:
        """Return everything that was noted."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return {
            "spans": self.spans,
            "peaks": self.peaks,
            "steps": self.steps,
            "peak_rss_bytes": max(self.whole_peak, peak_rss_bytes() or 0),
            "children_peak_rss_bytes": children,
        }


def watch_agent(recorder: Recorder) -> None:
    """Put the probes into the agent of this process."""
    from edge_sdk.agent import local_training
    from edge_sdk.agent.agent import Agent
    from edge_sdk.agent.installer import Installer
    from edge_sdk.agent.store import Store
    from edge_sdk.agent.uplink import Uplink

    watch_training(recorder)
    begin, end = recorder.begin, recorder.end
    recorder.before(Agent, "_on_task", lambda: begin("fetch"))
    recorder.before(local_training, "train_round", lambda: end("fetch"), lambda: begin("load"))
    recorder.wrap(local_training, "encode_update", "encode")
    recorder.wrap(Store, "add_update", "store")
    recorder.after(Store, "add_update", lambda: begin("publish"))
    recorder.after(Uplink, "settle", lambda: end("publish"))
    recorder.before(Agent, "_on_release", lambda: begin("release download"))
    recorder.before(Installer, "prepare", lambda: end("release download"))
    recorder.wrap(Installer, "prepare", "release trial")
    recorder.wrap(Installer, "check_health", "release health check")


def watch_training(recorder: Recorder) -> None:
    """Put the probes into local training: program runs, attacks, optimiser, steps."""
    import edge_sdk.agent.local_training
    from edge_sdk.runtime import Program
    from edge_sdk.training.sgd import SGD

    recorder.wrap(Program, "execute", "forward_backward", within="attack")
    recorder.before(Program, "execute", lambda: recorder.end("load"))
    recorder.wrap(SGD, "step", "optimiser")
    module: Any = edge_sdk.agent.local_training
    inner = module.train

    @functools.wraps(inner)
    def train(*args: Any, on_step: Callable[[int, int, float], None], **options: Any) -> Any:
        stamps: list[tuple[float, float]] = []
        recorder.steps.append(stamps)

        def stamped(step: int, steps: int, loss: float) -> None:
            stamps.append((time.monotonic(), cpu_s()))
            on_step(step, steps, loss)

        with recorder.span("training"):
            return inner(*args, on_step=stamped, **options)

    module.train = train
