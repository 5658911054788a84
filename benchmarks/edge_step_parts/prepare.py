"""What takes long and is not measured, each in a process of its own: exports and reference values.

`kind` is `programs` (training programs), `reference` (start weights and the float64 gradient of
the first batch) or `products` (programs of one matrix product each, for the floor).
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import EdgeError
from edge_step_parts.processes import answer
from models import ModelSpec

# Rows, inner size and columns: what the ConvNet's layers are made of, and squarer ones.
PRODUCTS = ((256, 1152, 128), (1024, 1152, 128), (4096, 1152, 128), (1024, 1024, 1024))


def programs(spec: ModelSpec, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Export training programs; says of each that cannot be had why."""
    from edge_sdk.export import training_program

    skipped: dict[str, str] = {}
    for name, micro_batch in request["micro_batches"].items():
        keywords: dict[str, Any] = {"micro_batch": micro_batch}
        if option := request["option"]:
            keywords[option] = True
            if option not in inspect.signature(training_program).parameters:
                skipped[name] = f"training_program takes no `{option}`"
                continue
        if (folder / name).exists():
            continue
        try:
            training_program(spec, **keywords).save(folder / name)
        except EdgeError as error:
            skipped[name] = f"{type(error).__name__}: {error}"
    return {"skipped": skipped}


def reference(spec: ModelSpec, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Save the start weights and, for each batch size, the float64 gradient of the first batch."""
    import torch

    from edge_step_parts.arms import SEED, examples
    from models.networks import build_model, flat_parameters

    torch.set_num_threads(1)
    model = build_model(spec, seed=0)
    np.save(folder / f"{request['name']}-start.npy", flat_parameters(model))
    model.double()
    for size in request["batch_sizes"]:
        images, labels = examples(spec, {"steps": request["steps"], "batch_size": size})
        batch = np.random.Generator(np.random.PCG64(SEED)).permutation(size)
        model.zero_grad()
        logits = model(torch.from_numpy(images[batch]).double())
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[batch])).backward()
        gradients = [p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None]
        np.save(folder / f"{request['name']}-{size}.npy", np.concatenate(gradients))
    return {}


def products(folder: Path) -> dict[str, Any]:
    """Export matrix products: for XNNPACK with fixed and with changing factors, and our kernels.

    A 3x3 convolution is a product too: a row a pixel, an inner size of 9 times its channels.
    """
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    from edge_sdk.export import operators  # noqa: F401 - declares torch.ops.trajsyn
    from edge_sdk.export.lowering import lower

    class Product(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.bmm(a, b)

    class Native(torch.nn.Module):
        def __init__(self, kernel: int) -> None:
            super().__init__()
            self.kernel = kernel

        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.ops.trajsyn.convolution(x, weight, None, self.kernel)[0]
            return result

    plan = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    zeros, found = torch.zeros, {}
    for rows, inner, columns in PRODUCTS:
        b = zeros(inner, columns)
        cases: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = {
            "xnnpack-fixed": (torch.nn.Linear(inner, columns, bias=False), (zeros(rows, inner),)),
            "xnnpack-changing": (Product(), (zeros(1, rows, inner), b[None])),
            "native": (Native(0), (zeros(rows, inner), b)),
        }
        if inner % 9 == 0:
            side = math.isqrt(rows)
            cases["native-3x3"] = (Native(3), (zeros(1, side, side, inner // 9), b))
        for kind, case in cases.items():
            found[f"product-{kind}-{rows}x{inner}x{columns}.pte"] = case
    for name, (module, inputs) in found.items():
        if (folder / name).exists():
            continue
        if "native" in name:
            (folder / name).write_bytes(lower(module, inputs))
            continue
        with torch.no_grad():
            exported = torch.export.export(module, inputs)
            edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        lowered = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=plan))
        (folder / name).write_bytes(lowered.buffer)
    return {"names": list(found)}


def main() -> None:
    """Prepare what the request names."""
    warnings.simplefilter("ignore", FutureWarning)
    for name in ("torch.utils._pytree", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)
    request = json.loads(sys.argv[1])
    folder = Path(request["folder"])
    if request["kind"] == "products":
        answer(products(folder))
        return
    spec = ModelSpec.from_dict(request["spec"])
    make = programs if request["kind"] == "programs" else reference
    answer(make(spec, folder, request))


if __name__ == "__main__":
    main()
