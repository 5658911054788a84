"""An ONNX file as a differentiable torch function, built from the graph's own nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as nn_f
from onnx import helper, numpy_helper
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def load_network(path: Path) -> Network:
    """Return the network in `path` as a function of `(N, C, H, W) float32`, its constants frozen.

    Exits naming the node for an operator or attribute that it does not know.
    """
    graph = onnx.load(path).graph
    constants = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in graph.initializer}

    def network(images: Tensor) -> Tensor:
        values = {**constants, graph.input[0].name: images}
        for node in graph.node:
            values[node.output[0]] = _run(node, [values[name] for name in node.input])
        return values[graph.output[0].name]

    return network


def _run(node: onnx.NodeProto, x: list[Tensor]) -> Tensor:
    a: dict[str, Any] = {p.name: helper.get_attribute_value(p) for p in node.attribute}
    pads = a.get("pads", [0, 0, 0, 0])
    if a.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[:2] != pads[2:]:
        raise SystemExit(f"node {node.name}: automatic or uneven padding is not supported here")
    strides, groups = a.get("strides", [1, 1]), a.get("group", 1)
    match node.op_type:
        case "Sub":
            return x[0] - x[1]
        case "Div":
            return x[0] / x[1]
        case "Relu":
            return x[0].relu()
        case "Conv":
            dilations = a.get("dilations", [1, 1])
            return nn_f.conv2d(x[0], x[1], x[2], strides, pads[:2], dilations, groups)
        case "InstanceNormalization":
            return nn_f.instance_norm(x[0], weight=x[1], bias=x[2], eps=a.get("epsilon", 1e-5))
        case "AveragePool" if not any(pads):
            ceil = bool(a.get("ceil_mode", 0))
            return nn_f.avg_pool2d(x[0], a["kernel_shape"], strides, ceil_mode=ceil)
        case "Reshape":
            return x[0].reshape([int(n) for n in x[1]])
        case "Gemm" if not a.get("transA", 0):
            matrix = x[1].T if a.get("transB", 0) else x[1]
            return a.get("alpha", 1.0) * x[0] @ matrix + a.get("beta", 1.0) * x[2]
    raise SystemExit(f"node {node.name}: operator {node.op_type} is not supported here")
