"""Lower a function to an ExecuTorch program that calls nothing but the runtime's own operators."""

from __future__ import annotations

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.constant_prop_pass import constant_prop_pass
from torch import Tensor, nn

from edge_sdk.errors import UnsupportedLayerError

CACHE_LINE_BYTES = 64


def lower(step: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """Return the `.pte` of `step` for these inputs' shapes.

    Raises `UnsupportedLayerError` naming every operation that is not the runtime's: the device has
    no kernel for it.
    """
    with torch.no_grad():
        exported = torch.export.export(step, inputs, strict=False)
        # The constants of the blocks (`zeros`) become data.
        exported = constant_prop_pass(exported, custom_skip_targets=set())
    called = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    names = {str(getattr(target, "name", lambda t=target: t.__name__)()) for target in called}
    rest = sorted(n for n in names if not n.startswith("trajsyn::") and n != "getitem")
    if rest:
        raise UnsupportedLayerError(f"the runtime has no operator for: {', '.join(rest)}")
    # Edge IR's own checks know only ATen's operators.
    edge = to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    plan = MemoryPlanningPass(
        alloc_graph_input=False, alloc_graph_output=False, alignment=CACHE_LINE_BYTES
    )
    return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=plan)).buffer)
