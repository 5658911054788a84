"""What no step can be faster than: its arithmetic at the best rate, its bytes at full bandwidth.

As a child it measures those rates: `kind` is `runtime` (matrix products through our runtime, and
copying memory) or `torch` (torch.mm, for comparison).
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_step_parts.processes import answer
from models import ModelSpec, layout_of

COPY_BYTES = 64 << 20
SECONDS_A_PRODUCT = 0.25
FLOAT_BYTES = 4
POOLED_ALEXNET = (0, 1, 4)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as a matrix product for one image, and what follows it."""

    rows: int  # pixels of the output
    inner: int  # input channels times taps
    columns: int  # output channels
    output_floats: int  # after its norm, ReLU and pool


def layers_of(spec: ModelSpec) -> list[Layer]:
    """Return the layers with parameters in order."""
    side, found = spec.image_size, []
    weights = [p for p in layout_of(spec).parameters if len(p.shape) == 4]
    for index, weight in enumerate(weights):
        columns, *inner = weight.shape
        rows = side * side
        if spec.architecture == "convnet" or index in POOLED_ALEXNET:
            side //= 2
        found.append(Layer(rows, math.prod(inner), columns, side * side * columns))
    features = found[-1].output_floats
    return [*found, Layer(1, features, spec.classes, spec.classes)]


def step_flop(spec: ModelSpec, batch_size: int) -> int:
    """Return a step's floating-point operations in matrix products, 2 a multiply and add.

    Forward, weight gradient, and input gradient except the first layer's. The taps that lie on
    the padding count too, as they do for every implementation by matrix products.
    """
    products = [2 * layer.rows * layer.inner * layer.columns for layer in layers_of(spec)]
    return batch_size * (3 * sum(products) - products[0])


def step_bytes(spec: ModelSpec, batch_size: int) -> int:
    """Return the bytes that a step must move if no cache held anything between two passes.

    A layer's product: written, read by the norm or ReLU, read again in the backward pass, its
    gradient written and read. A layer's output: written, read by the next layer forward and again
    for the weight gradient, its gradient written and read. Images: read twice. Parameters, once a
    step: read forward and backward, gradient written and read, velocity and weights read and
    written.
    """
    floats = 2 * spec.channels * spec.image_size**2
    for layer in layers_of(spec):
        floats += 5 * layer.rows * layer.columns + 5 * layer.output_floats
    return FLOAT_BYTES * (batch_size * floats + 8 * layout_of(spec).size)


def best_seconds(work: Callable[[], object]) -> float:
    """Return the shortest of many runs."""
    best, end = math.inf, time.perf_counter() + SECONDS_A_PRODUCT
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def runtime_rates(folder: Path, names: list[str], threads: int) -> dict[str, float]:
    """Return GFLOP/s of each exported product, run by our runtime."""
    from edge_sdk.runtime import Program

    rates = {}
    for name in names:
        program = Program.load(folder / name, threads=threads)
        inputs = [info.empty() for info in program.inputs]
        outputs = [info.empty() for info in program.outputs]
        for array in inputs:
            array[...] = np.random.default_rng(0).random(array.shape)
        seconds = best_seconds(lambda p=program, i=inputs, o=outputs: p.execute(i, o))  # type: ignore[misc]
        kind, shape = name.removeprefix("product-").removesuffix(".pte").rsplit("-", 1)
        rates[f"{kind} {shape}"] = 2e-9 * math.prod(map(int, shape.split("x"))) / seconds
        program.close()
    return rates


def torch_rates(names: list[str], threads: int) -> dict[str, float]:
    """Return GFLOP/s of torch.mm on the same shapes."""
    import torch

    torch.set_num_threads(threads)
    rates = {}
    for shape in sorted({name.removesuffix(".pte").rsplit("-", 1)[1] for name in names}):
        rows, inner, columns = map(int, shape.split("x"))
        a, b, c = torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns)
        seconds = best_seconds(lambda a=a, b=b, c=c: torch.mm(a, b, out=c))  # type: ignore[misc]
        rates[shape] = 2e-9 * rows * inner * columns / seconds
    return rates


def copy_gb_per_s(threads: int) -> float:
    """Return the bandwidth of copying large arrays, one a thread; read and written bytes count."""
    pairs = [(np.ones(COPY_BYTES, np.uint8), np.ones(COPY_BYTES, np.uint8)) for _ in range(threads)]

    def copy() -> None:
        workers = [threading.Thread(target=np.copyto, args=pair) for pair in pairs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return 2e-9 * threads * COPY_BYTES / best_seconds(copy)


def main() -> None:
    """Measure what the request names."""
    request: dict[str, Any] = json.loads(sys.argv[1])
    names, threads = request["names"], request["threads"]
    if request["kind"] == "torch":
        answer({"gflop_per_s": torch_rates(names, threads)})
        return
    rates = runtime_rates(Path(request["folder"]), names, threads)
    answer({"gflop_per_s": rates, "copy_gb_per_s": copy_gb_per_s(threads)})


if __name__ == "__main__":
    main()
