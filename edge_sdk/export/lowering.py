"""Lower a function to an ExecuTorch program that is one XNNPACK delegate."""

from __future__ import annotations

from collections import Counter

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.constant_prop_pass import constant_prop_pass
from torch import Tensor, nn

from edge_sdk.errors import UnsupportedLayerError

# What a graph of one delegate consists of: the call, and taking its results apart.
_GLUE = {"executorch_call_delegate", "getitem"}


def lower(step: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """Return the `.pte` of `step` for these inputs' shapes.

    Raises `UnsupportedLayerError` when an operation is left outside of the delegate: it would run
    on kernels that the device does not have.
    """
    with torch.no_grad():
        exported = torch.export.export(step, inputs, strict=False)
        # The constants of the blocks (`ones`, `full`) become data that the delegate takes in.
        exported = constant_prop_pass(exported, custom_skip_targets=set())
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    calls = Counter(
        getattr(node.target, "__name__", str(node.target))
        for node in edge.exported_program().graph.nodes
        if node.op == "call_function"
    )
    rest = sorted(set(calls) - _GLUE)
    if rest or calls["executorch_call_delegate"] != 1:
        raise UnsupportedLayerError(
            f"the network became {calls['executorch_call_delegate']} XNNPACK delegates instead of "
            f"one; outside of them: {', '.join(rest) or 'nothing'}"
        )
    plan = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=plan)).buffer)
