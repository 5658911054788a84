"""How much memory a distillation will take, found without taking it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import ModelSpec, layout_of
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.flat_network import CPU_PART_BYTES, FlatNetwork
from server_toolkit.distill.iteration import Run, initial_state, iterate, parameterisation_of
from server_toolkit.distill.segments import Segment
from server_toolkit.errors import DistillationError

PROBED_STEPS = 2
# Code and workspaces of the libraries, and what the allocator cannot give back. On the CPU 24 to
# 104 MB were measured over networks and batch sizes (tests hold the whole prediction to 25 %).
BESIDES_TENSORS_CPU = 58_000_000
BESIDES_TENSORS_GPU = 256_000_000
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class PeakOfStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that live at once while it is active.

    On tensors of the "meta" device, which have a shape and no memory, a whole computation runs in
    the time of its Python alone. What it would read back from them reads as 0.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._now = 0
        self._living: dict[int, Any] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count what it allocated."""
        if (value := _read_back(func, args, kwargs or {})) is not None:
            return value
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._living:
            return

        def gone(_: object) -> None:
            del self._living[key]
            self._now -= size

        self._living[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak_bytes = max(self.peak_bytes, self._now)


def _read_back(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> float | Tensor | None:
    """Return zeros where an operation reads the values of a "meta" tensor, else None."""
    source = args[0] if args else None
    if not isinstance(source, Tensor) or source.device.type != "meta":
        return None
    if func is torch.ops.aten._local_scalar_dense.default:
        return 0.0
    if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
        return torch.zeros(source.shape, dtype=source.dtype, device="cpu")
    return None


def predict_bytes(
    config: DistillConfig,
    spec: ModelSpec,
    *,
    device: str | torch.device = "cpu",
    processes: int = 1,
) -> int:
    """Return how many more bytes a run on `device` takes at its worst, a process.

    Runs iterations on the "meta" device. The trajectories themselves are not counted.
    """
    if config.iterations == 0:  # the start alone is wanted
        return 2 * 4 * spec.classes * config.images_per_class * spec.channels * spec.image_size**2
    own = max(1, config.segments_per_iteration // processes)
    on_cpu = torch.device(device).type == "cpu"
    peak = _peak_of_one_iteration(
        dataclasses.replace(config, segments_per_iteration=own, student_steps=PROBED_STEPS),
        spec,
        on_cpu=on_cpu,
    )
    # Every further step keeps one more weight vector a student and nothing else.
    further = (config.student_steps - PROBED_STEPS) * (1 if on_cpu else own)
    peak += 4 * layout_of(spec).size * further
    # What the other processes send has a row a segment.
    images = spec.channels * spec.image_size**2
    row = 4 * (2 + spec.classes * config.images_per_class * (images + spec.classes))
    besides = BESIDES_TENSORS_CPU if on_cpu else BESIDES_TENSORS_GPU
    return peak + row * (config.segments_per_iteration - own) + besides


def _peak_of_one_iteration(config: DistillConfig, spec: ModelSpec, *, on_cpu: bool) -> int:
    count = spec.classes * config.images_per_class
    weights = np.zeros(layout_of(spec).size, np.float32)
    with torch.device("meta"), PeakOfStorages() as peak:
        run = Run(
            config,
            FlatNetwork(
                spec,
                device="meta",
                product_dtype=torch.bfloat16 if config.mixed_precision else None,
                part_bytes=CPU_PART_BYTES if on_cpu else None,
            ),
            (Segment(weights, weights, "", 0),),
            parameterisation_of(config, spec),
            together=not on_cpu,
        )
        images = torch.empty(count, spec.channels, spec.image_size, spec.image_size)
        state = initial_state(run, images, torch.empty(count, spec.classes))
        iterate(state, run)
    return int(peak.peak_bytes)


def free_bytes(device: str | torch.device) -> int | None:
    """Return how much memory of a device can still be taken, or None where nobody knows.

    On the CPU that is what the kernel calls available, or what the process's control group leaves.
    """
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds of freed tensors it will use again.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(held)
    limits = [_available_bytes(), _left_in_control_group()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _available_bytes() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_control_group() -> int | None:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text()
        stat = (CGROUP / "memory.stat").read_text()
        # Cached files count as used but give way.
        cached = dict(line.split() for line in stat.splitlines()).get("inactive_file", "0")
        return None if limit == "max" else int(limit) - int(used) + int(cached)
    except (OSError, ValueError):
        return None


def refuse_if_too_large(
    what: str, needed_bytes: int, device: str | torch.device, *, advice: str
) -> None:
    """Raise `DistillationError` with both numbers where `needed_bytes` are not free."""
    free = free_bytes(device)
    if free is not None and needed_bytes > free:
        kind = "GPU memory" if torch.device(device).type == "cuda" else "memory"
        raise DistillationError(
            f"{what} needs about {as_text(needed_bytes)} more {kind}, "
            f"and {as_text(free)} are free; {advice}"
        )


def as_text(size_bytes: float) -> str:
    """Return "512 MB" or "3.1 GB"."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
