"""One arm of the comparison in a process of its own: some training steps, each one watched.

Every arm starts from the same weights and takes the same batches in the same order, so that the
losses must agree. A step is the whole of it: taking a batch out of the data set, forward, backward,
SGD with momentum.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_step_parts.processes import answer, peak_rss_mb
from models import ModelSpec, layout_of

WARM_UP_STEPS = 3
LEARNING_RATE, MOMENTUM, SEED = 0.001, 0.9, 0  # low: losses must stay comparable for long
# A step of this length, a power of two, leaves nothing of the old weights but rounding: the
# gradient that any arm really used is (start - end) / GIANT, to float32's precision.
GIANT = 2.0**24

OnStep = Callable[[int, float], None]
Train = Callable[[int, float, float, OnStep], Any]  # steps, learning rate, momentum


class Watch:
    """Takes time, loss and page faults after every step, the heap's size and peak memory twice."""

    def __init__(self, steps: int) -> None:
        # Made before the first step: what grows meanwhile is not the watch's own.
        self._stamps, self._losses = np.zeros(steps), np.zeros(steps)
        self._faults = np.zeros(steps, np.int64)
        self._heap, self._peak_mb = [heap_bytes()] * 2, [peak_rss_mb()] * 2

    def __call__(self, step: int, loss: float) -> None:
        """Note the end of a step; memory after the warm-up and before the program is closed."""
        self._stamps[step - 1] = time.perf_counter()
        self._losses[step - 1] = loss
        self._faults[step - 1] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        if step in (WARM_UP_STEPS, len(self._stamps)):
            last = step != WARM_UP_STEPS
            self._peak_mb[last] = peak_rss_mb()
            self._heap[last] = heap_bytes()

    def result(self) -> dict[str, Any]:
        """Return the milliseconds of every step after the warm-up, and what grew meanwhile."""
        return {
            "step_ms": (1e3 * np.diff(self._stamps))[WARM_UP_STEPS:].tolist(),
            "losses": self._losses.tolist(),
            "page_faults": np.diff(self._faults)[WARM_UP_STEPS:].tolist(),
            "heap_growth_bytes": self._heap[1] - self._heap[0],
            "peak_growth_mb": self._peak_mb[1] - self._peak_mb[0],
        }


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    )  # fmt: skip


def heap_bytes() -> int:
    """Return the bytes that are allocated in glibc's main heap and in mappings of its own."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Mallinfo
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def program_trainer(path: str, start: Any, options: dict[str, Any]) -> Train:
    """Train over our program: numpy-level code only."""
    from edge_sdk.runtime import ProgramFile
    from edge_sdk.training import Dataset, train

    file = ProgramFile.load(path)
    images, labels = examples(file.spec, options)

    def run(steps: int, learning_rate: float, momentum: float, on_step: OnStep) -> Any:
        count = steps * options["batch_size"]
        return train(
            file,
            start,
            Dataset(images[:count], labels[:count], file.spec.classes),
            epochs=1,
            batch_size=options["batch_size"],
            learning_rate=learning_rate,
            momentum=momentum,
            seed=SEED,
            threads=options["threads"],
            on_step=lambda step, _steps, loss: on_step(step, loss),
        ).weights

    return run


def torch_trainer(spec: ModelSpec, start: Any, options: dict[str, Any], *, compiled: bool) -> Train:
    """Train the same network in PyTorch, eager or compiled."""
    import torch

    from models.networks import build_model, flat_parameters, load_flat

    torch.set_num_threads(options["threads"])
    model = build_model(spec)
    images, labels = examples(spec, options)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(images), labels)

    function = torch.compile(loss_of) if compiled else loss_of

    def run(steps: int, learning_rate: float, momentum: float, on_step: OnStep) -> Any:
        load_flat(model, start)
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
        size = options["batch_size"]
        order = np.random.Generator(np.random.PCG64(SEED)).permutation(steps * size)
        for step in range(steps):
            batch = order[step * size : (step + 1) * size]
            loss = function(torch.from_numpy(images[batch]), torch.from_numpy(labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            on_step(step + 1, loss.item())
        return flat_parameters(model)

    return run


def examples(spec: ModelSpec, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return random images and labels, `steps` batches of them."""
    rng = np.random.default_rng(1)
    count = options["steps"] * options["batch_size"]
    shape = (count, spec.channels, spec.image_size, spec.image_size)
    return rng.random(shape, dtype=np.float32), rng.integers(spec.classes, size=count)


def gradient(train: Train, start: Any) -> Any:
    """Return the gradient of the mean loss of one batch that a step really follows."""
    end = train(1, GIANT, 0.0, lambda *_: None)
    return (start.astype(np.float64) - end.astype(np.float64)) / GIANT


def gradient_errors(found: Any, truth: Any, spec: ModelSpec) -> dict[str, Any]:
    """Return the norm of the difference over the truth's: of all, and of single parameters.

    Where the true gradient is zero (under 1e-9 of the whole norm), the whole norm takes its place.
    """
    whole = float(np.linalg.norm(truth))
    errors: dict[str, float] = {}
    for parameter, place in layout_of(spec).slices():
        norm = float(np.linalg.norm(truth[place]))
        scale = norm if norm > 1e-9 * whole else whole
        errors[parameter.name] = float(np.linalg.norm(found[place] - truth[place])) / scale
    worst = max(errors, key=lambda name: errors[name])
    return {
        "gradient_error": float(np.linalg.norm(found - truth)) / whole,
        "gradient_error_median": float(np.median(list(errors.values()))),
        "gradient_error_worst": errors[worst],
        "gradient_error_worst_of": worst,
    }


def transient_bytes(train: Train, steps: int = 6) -> int:
    """Return how much a step's numpy and Python objects add at most, after the first steps."""
    base: list[int] = []

    def on_step(step: int, _loss: float) -> None:
        if step == WARM_UP_STEPS:
            tracemalloc.reset_peak()
            base.append(tracemalloc.get_traced_memory()[0])
        if step == steps - 1:  # the end of the run is no step
            base.append(tracemalloc.get_traced_memory()[1])

    tracemalloc.start()
    train(steps, LEARNING_RATE, MOMENTUM, on_step)
    tracemalloc.stop()
    return base[1] - base[0]


def main() -> None:
    """Run the arm that the request names."""
    request = json.loads(sys.argv[1])
    options, kind = request["options"], request["kind"]
    spec = ModelSpec.from_dict(options["spec"])
    start = np.load(request["start"])
    if kind == "program":
        train = program_trainer(request["program"], start, options)
    else:
        train = torch_trainer(spec, start, options, compiled=kind == "compile")
    watch = Watch(options["steps"])
    train(options["steps"], LEARNING_RATE, MOMENTUM, watch)
    result = watch.result() | {"own_peak_rss_mb": peak_rss_mb()}
    if request.get("truth"):
        truth = np.load(Path(request["truth"]))
        result |= gradient_errors(gradient(train, start), truth, spec)
        result["transient_bytes"] = transient_bytes(train)
    answer(result)


if __name__ == "__main__":
    main()
