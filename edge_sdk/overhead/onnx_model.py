"""A network as ONNX bytes without the onnx package, for inference beside training.

A device has onnxruntime but neither torch nor onnx; where no release is installed yet, this gives
it a model of the very network that it trains. Field numbers are those of onnx.proto3 (ONNX IR 8).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models import ModelSpec, layout_of
from models.layers import AveragePool, Convolution, InstanceNorm, Linear, MaxPool

Float32 = npt.NDArray[np.float32]

IR_VERSION, OPSET = 8, 17
_FLOAT = 1
_ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 2, 7


def onnx_bytes(spec: ModelSpec, weights: Float32) -> bytes:
    """Return a model from images `(n, C, H, W) float32 in [0, 1]` to logits `(n, classes)`."""
    graph = _Graph(layout_of(spec).split(weights))
    x = graph.node("Sub", ["images", graph.constant("mean", _per_channel(spec.mean))])
    x = graph.node("Div", [x, graph.constant("std", _per_channel(spec.std))])
    for name, layer, before, _ in spec.shapes():
        prefix = name if name == "classifier" else f"features.{name}"
        if isinstance(layer, Convolution):
            x = graph.layer("Conv", x, prefix, pads=[layer.kernel // 2] * 4)
        elif isinstance(layer, InstanceNorm):
            x = graph.layer("InstanceNormalization", x, prefix, epsilon=1e-5)
        elif isinstance(layer, MaxPool | AveragePool):
            size = [layer.size] * 2
            kind = "MaxPool" if isinstance(layer, MaxPool) else "AveragePool"
            x = graph.node(kind, [x], kernel_shape=size, strides=size)
        elif isinstance(layer, Linear):
            if len(before) == 3:
                x = graph.node("Flatten", [x])
            output = "logits" if name == "classifier" else ""
            x = graph.layer("Gemm", x, prefix, output=output, transB=1)
        else:
            x = graph.node("Relu", [x])
    shape = (spec.channels, spec.image_size, spec.image_size)
    return graph.model(inputs=("images", shape), outputs=("logits", (spec.classes,)))


def _per_channel(values: Sequence[float]) -> Float32:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


class _Graph:
    """Collects nodes and constants as encoded fields."""

    def __init__(self, parameters: dict[str, Float32]) -> None:
        self._parameters = parameters
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []

    def constant(self, name: str, values: Float32) -> str:
        dims = b"".join(_integer(1, size) for size in values.shape)
        data = np.ascontiguousarray(values, "<f4").tobytes()
        self._constants.append(dims + _integer(2, _FLOAT) + _text(8, name) + _bytes(9, data))
        return name

    def node(
        self,
        operation: str,
        inputs: Sequence[str],
        *,
        output: str = "",
        **attributes: float | int | list[int],
    ) -> str:
        output = output or f"t{len(self._nodes)}"
        fields = b"".join(_text(1, name) for name in inputs) + _text(2, output)
        fields += _text(4, operation)
        fields += b"".join(_bytes(5, _attribute(n, v)) for n, v in attributes.items())
        self._nodes.append(fields)
        return output

    def layer(
        self, operation: str, x: str, prefix: str, *, output: str = "", **attributes: Any
    ) -> str:
        """Add a node that takes the layer's weight and, where it has one, its bias."""
        names = [n for n in (f"{prefix}.weight", f"{prefix}.bias") if n in self._parameters]
        inputs = [x, *(self.constant(name, self._parameters[name]) for name in names)]
        return self.node(operation, inputs, output=output, **attributes)

    def model(
        self, *, inputs: tuple[str, tuple[int, ...]], outputs: tuple[str, tuple[int, ...]]
    ) -> bytes:
        graph = b"".join(_bytes(1, node) for node in self._nodes) + _text(2, "network")
        graph += b"".join(_bytes(5, constant) for constant in self._constants)
        graph += _bytes(11, _value_info(*inputs)) + _bytes(12, _value_info(*outputs))
        opset = _text(1, "") + _integer(2, OPSET)
        return _integer(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, opset)


def _attribute(name: str, value: float | int | list[int]) -> bytes:
    if isinstance(value, list):
        fields = b"".join(_integer(8, v) for v in value) + _integer(20, _ATTRIBUTE_INTS)
    elif isinstance(value, int):
        fields = _integer(3, value) + _integer(20, _ATTRIBUTE_INT)
    else:
        fields = _tag(2, 5) + struct.pack("<f", value) + _integer(20, _ATTRIBUTE_FLOAT)
    return _text(1, name) + fields


def _value_info(name: str, shape: tuple[int, ...]) -> bytes:
    """Describe a float tensor whose first dimension is any number `n`."""
    sizes = _bytes(1, _text(2, "n")) + b"".join(_bytes(1, _integer(1, s)) for s in shape)
    tensor = _integer(1, _FLOAT) + _bytes(2, sizes)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
    return _tag(field, 0) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())
