"""The operators `trajsyn::...`, declared for the exporter; the device's library computes them.

`operators.cpp` and `int8_operators.cpp` in `edge_sdk/runtime/native/` say what each takes and
gives. Results that no one reads (`packed`, `partials`) are scratch memory, which ExecuTorch plans
together with everything else. Here are only names, shapes and types: importing this file registers
them.
"""

# ruff: noqa: ARG001 - a shape function has its operator's signature

from __future__ import annotations

import torch
from torch import Tensor

NO_POOL, AVERAGE_POOL, MAX_POOL = 0, 1, 2
MAX_KERNEL = 15

_SCHEMAS = (
    "convolution(Tensor x, Tensor weight, Tensor? bias, int kernel)"
    " -> (Tensor z, Tensor padded, Tensor packed)",
    "quantized_convolution(Tensor x, Tensor weight, Tensor? bias, int kernel, Tensor range)"
    " -> (Tensor z, Tensor padded, Tensor packed, Tensor observed, Tensor steps)",
    "convolution_weight_gradient(Tensor padded, Tensor dz, int kernel) -> Tensor dweight",
    "convolution_input_gradient(Tensor dz, Tensor weight, int kernel, int height, int width)"
    " -> (Tensor dx, Tensor padded, Tensor packed)",
    "quantized_convolution_input_gradient(Tensor dz, Tensor weight, int kernel, int height,"
    " int width, Tensor x, Tensor range, Tensor steps)"
    " -> (Tensor dx, Tensor padded, Tensor packed)",
    "int8_convolution(Tensor x, Tensor weight, Tensor? bias, int kernel, Tensor range)"
    " -> (Tensor z, Tensor rows, Tensor planes, Tensor packed, Tensor sums, Tensor observed,"
    " Tensor used, Tensor steps, Tensor scales)",
    "int8_weight_gradient(Tensor dz, Tensor planes, Tensor used, int kernel, int inputs)"
    " -> (Tensor dweight, Tensor rounded, Tensor sums, Tensor scales, Tensor inverse_steps)",
    "int8_input_gradient(Tensor dz, Tensor weight, int kernel, Tensor x, Tensor used, Tensor steps)"
    " -> (Tensor dx, Tensor rows, Tensor packed, Tensor sums, Tensor factors, Tensor scales)",
    "bias_gradient(Tensor dz) -> Tensor dbias",
    "activation(Tensor z, Tensor? scale, Tensor? shift, float epsilon, bool relu, int pool,"
    " int pool_size) -> (Tensor y, Tensor statistics)",
    "activation_backward(Tensor dy, Tensor z, Tensor statistics, Tensor? scale, Tensor? shift,"
    " bool relu, int pool, int pool_size)"
    " -> (Tensor dz, Tensor dscale, Tensor dshift, Tensor partials)",
    "scale_shift(Tensor x, Tensor scale, Tensor shift) -> Tensor y",
    "softmax_cross_entropy(Tensor logits, Tensor labels) -> (Tensor loss, Tensor dlogits)",
)

_library = torch.library.Library("trajsyn", "DEF")  # type: ignore[no-untyped-call]


def _define(schema: str) -> None:
    """Define the operator and the variant that ExecuTorch calls, which writes to given tensors."""
    head, results = schema.split(" -> ")
    name, arguments = head.rstrip(")").split("(", 1)
    names = [r.removeprefix("Tensor ") for r in results.strip("()").split(", ")]
    outs = ", ".join(f"Tensor({chr(97 + i)}!) {n}" for i, n in enumerate(names))
    types = ", ".join(f"Tensor({chr(97 + i)}!)" for i in range(len(names)))
    types = f"({types})" if len(names) > 1 else types
    _library.define(schema)  # type: ignore[no-untyped-call]
    variant = f"{name}.out({arguments}, *, {outs}) -> {types}"
    _library.define(variant)  # type: ignore[no-untyped-call]


for _schema in _SCHEMAS:
    _define(_schema)


def _packed(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return room for a weight in panels; `padded_outputs` in operator_call.h is the same."""
    unit = 64 if columns > 32 else 32 if columns > 16 else 16
    return like.new_empty(rows, -(-columns // unit) * unit)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, outputs = weight.shape
    packed = _packed(rows, outputs, x)
    if kernel == 0:
        return x.new_empty(x.shape[0], outputs), torch.empty_like(x), packed
    batch, height, width, inputs = x.shape
    frame = x.new_empty(batch, height + kernel - 1, width + kernel - 1, inputs)
    return x.new_empty(batch, height, width, outputs), frame, packed


def _quantized_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, range: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    observed, steps = x.new_empty(x.shape[0], 2), x.new_empty(weight.shape[1])
    return *_convolution(x, weight, bias, kernel), observed, steps


def _convolution_weight_gradient(padded: Tensor, dz: Tensor, kernel: int) -> Tensor:
    rows = padded.shape[-1] * kernel**2 if kernel else padded.shape[1:].numel()
    return padded.new_empty(rows, dz.shape[-1])


def _convolution_input_gradient(
    dz: Tensor, weight: Tensor, kernel: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, outputs = weight.shape
    taps, inputs = kernel * kernel or 1, rows // (kernel * kernel or height * width)
    images, margin = dz.shape[0], max(kernel - 1, 0)
    if kernel == 0:
        frame, columns = torch.empty_like(dz), rows
    else:
        frame = dz.new_empty(images, height + margin, width + margin, outputs)
        columns = inputs
    packed = _packed(taps * outputs, columns, dz)
    return dz.new_empty(images, height, width, inputs), frame, packed


def _quantized_convolution_input_gradient(
    dz: Tensor,
    weight: Tensor,
    kernel: int,
    height: int,
    width: int,
    x: Tensor,
    range: Tensor,
    steps: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _convolution_input_gradient(dz, weight, kernel, height, width)


INT8_SLACK_BYTES = 256


def _int8_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, range: Tensor
) -> tuple[Tensor, ...]:
    batch, height, width, inputs = x.shape
    terms, outputs = weight.shape
    frame = (height + kernel - 1) * (width + kernel - 1) * inputs
    return (
        x.new_empty(batch, height, width, outputs),
        x.new_empty(batch * frame, dtype=torch.uint8),
        x.new_empty(batch * frame + INT8_SLACK_BYTES, dtype=torch.uint8),
        *_int8_packed(terms, outputs, x),
        x.new_empty(batch, 2),
        torch.empty_like(range),
        x.new_empty(outputs),
        x.new_empty(outputs),
    )


def _int8_weight_gradient(
    dz: Tensor, planes: Tensor, used: Tensor, kernel: int, inputs: int
) -> tuple[Tensor, ...]:
    batch, height, width, outputs = dz.shape
    size = batch * height * -(-width // 4) * 4 * outputs
    return (
        dz.new_empty(kernel * kernel * inputs, outputs),
        dz.new_empty(size + INT8_SLACK_BYTES, dtype=torch.int8),
        dz.new_empty(batch, outputs, dtype=torch.int32),
        dz.new_empty(outputs),
        dz.new_empty(outputs),
    )


def _int8_input_gradient(
    dz: Tensor, weight: Tensor, kernel: int, x: Tensor, used: Tensor, steps: Tensor
) -> tuple[Tensor, ...]:
    batch, height, width, outputs = dz.shape
    frame = (height + kernel - 1) * (width + kernel - 1) * outputs
    return (
        torch.empty_like(x),
        dz.new_empty(batch * frame, dtype=torch.uint8),
        *_int8_packed(kernel * kernel * outputs, x.shape[-1], dz),
        dz.new_empty(batch, outputs),
        dz.new_empty(batch, x.shape[-1]),
    )


def _int8_packed(terms: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for a weight in panels of bytes, and for its columns' sums."""
    padded = -(-columns // 64) * 64
    return (
        like.new_empty(terms * padded, dtype=torch.int8),
        like.new_empty(padded, dtype=torch.int32),
    )


def _bias_gradient(dz: Tensor) -> Tensor:
    return dz.new_empty(dz.shape[-1])


def _activation(
    z: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    epsilon: float,
    relu: bool,
    pool: int,
    pool_size: int,
) -> tuple[Tensor, Tensor]:
    batch, *sides, channels = z.shape
    size = pool_size if pool else 1
    y = z.new_empty(batch, *(side // size for side in sides), channels)
    return y, z.new_empty(batch, 2, channels)


def _activation_backward(
    dy: Tensor,
    z: Tensor,
    statistics: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    pool: int,
    pool_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = z.new_empty(z.shape[-1])
    return (
        torch.empty_like(z),
        channels,
        torch.empty_like(channels),
        torch.empty_like(statistics),
    )


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(x)


def _softmax_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(1), torch.empty_like(logits)


for _shapes in (
    _convolution,
    _quantized_convolution,
    _convolution_weight_gradient,
    _convolution_input_gradient,
    _quantized_convolution_input_gradient,
    _int8_convolution,
    _int8_weight_gradient,
    _int8_input_gradient,
    _bias_gradient,
    _activation,
    _activation_backward,
    _scale_shift,
    _softmax_cross_entropy,
):
    torch.library.register_fake(
        f"trajsyn::{_shapes.__name__.removeprefix('_')}", _shapes, lib=_library
    )
