"""Read a torch module as a chain of layers, and say where it is none."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edge_sdk.errors import ConfigError
from models.layers import Shape
from models.networks import Normalize


@dataclass(frozen=True)
class TracedLayer:
    """A step of a network: its name, the layer that it is, if it is one, and the shapes around it.

    `layer` is None for what no single layer of torch does, such as adding two branches; `text` then
    says what that is and `problem` why it cannot be in a chain. A shape has no batch dimension.
    """

    name: str
    layer: nn.Module | None
    text: str
    before: Shape
    behind: Shape
    problem: str = ""


def trace(model: nn.Module, shape: Shape) -> list[TracedLayer]:
    """Return the steps of `model` for one image of `shape` (channels, height, width).

    Calls of functions are given as the layers that do the same. Raises `ConfigError` where the
    model does not take such images or cannot be followed.
    """
    model = model.eval()
    try:
        module = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:
        raise ConfigError(f"the model cannot be followed layer by layer: {_line(error)}") from error
    shapes = _Shapes(module)
    try:
        with torch.no_grad():
            shapes.run(torch.zeros(2, *shape))
    except Exception as error:
        size = "x".join(str(side) for side in shape)
        raise ConfigError(f"the model does not take {size} images: {_line(error)}") from error
    if not isinstance(shapes.of.get(_output(module)), tuple):
        raise ConfigError("the model does not give one tensor")
    return _steps(module, shapes.of)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf: bool = super().is_leaf_module(m, module_qualified_name)
        return leaf or isinstance(m, Normalize)


class _Shapes(fx.Interpreter):
    """Runs the graph and keeps the shape of every tensor behind a node, without the batch."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.of: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "get_attr":
            self.of[n] = tuple(result.shape[1:])
        return result


def _output(module: fx.GraphModule) -> fx.Node:
    (end,) = (node for node in module.graph.nodes if node.op == "output")
    value = end.args[0]
    return value if isinstance(value, fx.Node) else end


def _steps(module: fx.GraphModule, shapes: dict[fx.Node, Shape]) -> list[TracedLayer]:
    nodes = [n for n in module.graph.nodes if n in shapes and n.op != "output"]
    steps: list[TracedLayer] = []
    seen: set[int] = set()
    for previous, node in itertools.pairwise(nodes):
        inputs = [n for n in node.all_input_nodes if n in shapes]
        name = str(node.target) if node.op == "call_module" else node.name
        before, behind = shapes[previous], shapes[node]
        if inputs != [previous]:
            problem = "it joins or leaves branches"
            steps.append(TracedLayer(name, None, _call(node), before, behind, problem))
            continue
        layers = _layers(module, node, before, behind)
        if not layers:
            problem = "it is no layer of a chain"
            steps.append(TracedLayer(name, None, _call(node), before, behind, problem))
        for suffix, layer in layers:
            weights = {id(p) for p in layer.parameters()}
            problem = "its weights are used twice" if weights & seen else ""
            seen |= weights
            if suffix:  # the second of two: the first pooled all pixels into one
                steps[-1] = dataclasses.replace(steps[-1], behind=(before[0], 1, 1))
                before = steps[-1].behind
            steps.append(TracedLayer(name + suffix, layer, str(layer), before, behind, problem))
    return steps


def _call(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"{target}({', '.join(str(a) for a in node.args)})"


def _layers(
    module: fx.GraphModule, node: fx.Node, before: Shape, behind: Shape
) -> list[tuple[str, nn.Module]]:
    """Return the layers that do what `node` does, with endings for their names; none, if none."""
    if node.op == "call_module":
        return [("", module.get_submodule(str(node.target)))]
    function: Any = node.target
    if node.op == "call_method":
        function = getattr(Tensor, str(node.target), None)
    name = getattr(function, "__name__", "")
    if name in ("flatten", "view", "reshape", "squeeze"):
        return [("", nn.Flatten())] if behind == (math.prod(before),) else []
    if name == "mean" and len(before) == 3 and behind in (before[:1], (before[0], 1, 1)):
        flatten = [(".flatten", nn.Flatten())] if len(behind) == 1 else []
        return [("", nn.AdaptiveAvgPool2d(1)), *flatten]
    if function not in _FUNCTIONS:
        return []
    make, names = _FUNCTIONS[function]
    options = dict(zip(names, node.args[1:], strict=False))
    options |= {k: v for k, v in node.kwargs.items() if k in names}
    if any(isinstance(value, fx.Node) for value in options.values()):
        return []
    return [("", make(**options))]


_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_MAXIMUM = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_FUNCTIONS: dict[Any, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    functional.relu: (nn.ReLU, ()),
    functional.relu_: (nn.ReLU, ()),
    torch.relu: (nn.ReLU, ()),
    torch.relu_: (nn.ReLU, ()),
    Tensor.relu: (nn.ReLU, ()),
    Tensor.relu_: (nn.ReLU, ()),
    functional.avg_pool2d: (nn.AvgPool2d, _AVERAGE),
    functional.max_pool2d: (nn.MaxPool2d, _MAXIMUM),
    torch.max_pool2d: (nn.MaxPool2d, _MAXIMUM),
    functional.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    functional.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size",)),
    functional.dropout: (nn.Dropout, ("p",)),
    functional.dropout2d: (nn.Dropout2d, ("p",)),
    functional.gelu: (nn.GELU, ()),
    functional.silu: (nn.SiLU, ()),
    functional.leaky_relu: (nn.LeakyReLU, ("negative_slope",)),
    functional.elu: (nn.ELU, ("alpha",)),
    functional.sigmoid: (nn.Sigmoid, ()),
    torch.sigmoid: (nn.Sigmoid, ()),
    Tensor.sigmoid: (nn.Sigmoid, ()),
    functional.tanh: (nn.Tanh, ()),
    torch.tanh: (nn.Tanh, ()),
    Tensor.tanh: (nn.Tanh, ()),
    functional.softmax: (nn.Softmax, ("dim",)),
    torch.softmax: (nn.Softmax, ("dim",)),
    functional.log_softmax: (nn.LogSoftmax, ("dim",)),
    torch.log_softmax: (nn.LogSoftmax, ("dim",)),
}
