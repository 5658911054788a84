"""Lower a network with its weights to an ExecuTorch program that is one XNNPACK delegate."""

from __future__ import annotations

from collections import Counter

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from torch import Tensor, nn

from edge_sdk.errors import UnsupportedLayerError

DELEGATE = "executorch_call_delegate"
# What a graph of one delegate consists of: the call, and taking its result apart.
_GLUE = {DELEGATE, "getitem"}


def lower_to_xnnpack(network: nn.Module, images: Tensor) -> bytes:
    """Return the `.pte` of `network` for inputs of the shape of `images`.

    Raises `UnsupportedLayerError` when an operation is left outside of the delegate, a conversion
    from or to int8 too: it would run on kernels that the device does not have.
    """
    with torch.no_grad():
        exported = torch.export.export(network.eval(), (images,), strict=False)
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    calls = Counter(
        getattr(node.target, "__name__", str(node.target))
        for node in edge.exported_program().graph.nodes
        if node.op == "call_function"
    )
    rest = sorted(set(calls) - _GLUE)
    if rest or calls[DELEGATE] != 1:
        raise UnsupportedLayerError(
            f"the network became {calls[DELEGATE]} XNNPACK delegates instead of one; outside of "
            f"them: {', '.join(rest) or 'nothing'}"
        )
    plan = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=plan)).buffer)
