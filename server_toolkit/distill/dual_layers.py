"""Every layer on dual numbers: values and their derivatives along one direction of the weights.

With θ + εu in place of the weights θ, every quantity has a value and a tangent d/dε. A layer maps
a value and a tangent forward and returns a *pull*, which maps the loss's gradient with respect to
the layer's output, and that gradient's tangent, back to its input. The tangents of the weights'
gradients that come out are the Hessian-vector product H u (Pearlmutter 1994).

Activations are `(N, S·C, H, W)` or `(N, S·F)`: S students side by side, each a group of channels
with weights of its own. The tangent of the images is None: they do not depend on the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import (
    avg_pool2d,
    conv2d,
    group_norm,
    max_pool2d,
    max_pool2d_with_indices,
)

from models.layers import AveragePool, Convolution, InstanceNorm, Layer, Linear, MaxPool

# (gradient, its tangent) of the output -> the same of the input, and the weights' tangents
Pulled = tuple[Tensor, Tensor, list[Tensor]]
Pull = Callable[[Tensor, Tensor], Pulled]
Weights = Sequence[Tensor]
NORM_EPSILON = 1e-5  # torch's default

_aten = torch.ops.aten


def plain_layer(
    layer: Layer, x: Tensor, w: Weights, students: int, product_dtype: torch.dtype | None
) -> Tensor:
    """Return a layer's output alone, differentiable by autograd."""
    if isinstance(layer, Convolution):
        weight, bias = _weight_and_bias(w, product_dtype)
        x_in, margin = _for_product(x, product_dtype), layer.kernel // 2
        bias = None if bias is None else bias.flatten()
        y = conv2d(x_in, weight.flatten(0, 1), bias, padding=margin, groups=students)
        return y.to(x.dtype)
    if isinstance(layer, Linear):
        weight, bias = _weight_and_bias(w, product_dtype)
        y = _grouped(_for_product(x, product_dtype), students) @ weight.mT
        if bias is not None:
            y = y + bias[:, None]
        return _side_by_side(y).to(x.dtype)
    if isinstance(layer, InstanceNorm):
        return group_norm(x, x.shape[1], w[0].flatten(), w[1].flatten(), NORM_EPSILON)
    if isinstance(layer, AveragePool):
        return avg_pool2d(x, layer.size)
    if isinstance(layer, MaxPool):
        return max_pool2d(x, layer.size)
    return x.relu()


def dual_layer(
    layer: Layer,
    x: Tensor,
    dx: Tensor | None,
    w: Weights,
    dw: Weights,
    students: int,
    product_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Pull]:
    """Return the output, its tangent and the pull of a layer at input `x` with weights `w`.

    `w` and `dw` hold the layer's weights and their tangents, each `(S, ...)` in torch's shape.
    Products are taken in `product_dtype` where one is given.
    """
    if isinstance(layer, Convolution):
        return _convolution(x, dx, w, dw, students, product_dtype)
    if isinstance(layer, Linear):
        return _linear(x, dx, w, dw, students, product_dtype)
    if dx is None:
        dx = torch.zeros_like(x)
    if isinstance(layer, InstanceNorm):
        return _instance_norm(x, dx, w, dw)
    if isinstance(layer, AveragePool):
        return _average_pool(x, dx, layer.size)
    if isinstance(layer, MaxPool):
        return _max_pool(x, dx, layer.size)
    return _relu(x, dx)


def _for_product(v: Tensor, product_dtype: torch.dtype | None) -> Tensor:
    return v if product_dtype is None else v.to(product_dtype)


def _weight_and_bias(w: Weights, product_dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    weight, *bias = (_for_product(v, product_dtype) for v in w)
    return weight, bias[0] if bias else None


def _convolution(
    x: Tensor,
    dx: Tensor | None,
    w: Weights,
    dw: Weights,
    students: int,
    product_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Pull]:
    dtype = x.dtype
    weight, bias = _weight_and_bias([v.flatten(0, 1) for v in w], product_dtype)
    dweight, dbias = _weight_and_bias([v.flatten(0, 1) for v in dw], product_dtype)
    margin = weight.shape[2] // 2
    x = _for_product(x, product_dtype)
    y = conv2d(x, weight, bias, padding=margin, groups=students)
    dy = conv2d(x, dweight, dbias, padding=margin, groups=students)
    if dx is not None:
        dx = _for_product(dx, product_dtype)
        dy += conv2d(dx, weight, padding=margin, groups=students)

    def back(g: Tensor, to: Tensor, weight: Tensor, parts: list[bool]) -> list[Tensor]:
        sides = [[1, 1], [margin, margin], [1, 1], False, [0, 0], students]
        found: list[Tensor] = _aten.convolution_backward(
            g, to, weight, [len(weight)], *sides, parts
        )
        return found

    def pull(g: Tensor, dg: Tensor) -> Pulled:
        # d(x * g) = dx * g + x * dg for the weights; the same with the weights in x's place.
        g, dg = _for_product(g, product_dtype), _for_product(dg, product_dtype)
        dg_x, dg_weight, dg_bias = back(dg, x, weight, [True, True, bias is not None])
        g_x = g  # nobody asks for it in the first layer, which has no dx
        if dx is not None:
            g_x, more, _ = back(g, dx, weight, [True, True, False])
            dg_weight += more
        dg_x += back(g, x, dweight, [True, False, False])[0]
        gradients = [dg_weight.view(w[0].shape).to(dtype)]
        if bias is not None:
            gradients.append(dg_bias.view(w[1].shape).to(dtype))
        return g_x.to(dtype), dg_x.to(dtype), gradients

    return y.to(dtype), dy.to(dtype), pull


def _grouped(v: Tensor, students: int) -> Tensor:
    """Map `(N, S·F, ...)` to `(S, N, features)`."""
    return v.reshape(len(v), students, -1).transpose(0, 1)


def _side_by_side(v: Tensor) -> Tensor:
    """Map `(S, N, F)` to `(N, S·F)`."""
    return v.transpose(0, 1).flatten(1)


def _linear(
    x: Tensor,
    dx: Tensor | None,
    w: Weights,
    dw: Weights,
    students: int,
    product_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Pull]:
    shape, dtype = x.shape, x.dtype
    weight, bias = _weight_and_bias(w, product_dtype)  # (S, outputs, F), (S, outputs)
    dweight, dbias = _weight_and_bias(dw, product_dtype)
    xs = _for_product(_grouped(x, students), product_dtype)
    y, dy = xs @ weight.mT, xs @ dweight.mT
    if dx is None:
        dx = torch.zeros_like(x)
    dxs = _for_product(_grouped(dx, students), product_dtype)
    dy = dy + dxs @ weight.mT
    if bias is not None and dbias is not None:
        y, dy = y + bias[:, None], dy + dbias[:, None]

    def pull(g: Tensor, dg: Tensor) -> Pulled:
        gs, dgs = (_for_product(_grouped(v, students), product_dtype) for v in (g, dg))
        gradients = [dgs.mT @ xs + gs.mT @ dxs]
        if bias is not None:
            gradients.append(dgs.sum(dim=1))
        g_x, dg_x = gs @ weight, dgs @ weight + gs @ dweight
        g_x, dg_x = (_side_by_side(v).reshape(shape).to(dtype) for v in (g_x, dg_x))
        return g_x, dg_x, [v.to(dtype) for v in gradients]

    return _side_by_side(y).to(dtype), _side_by_side(dy).to(dtype), pull


def _instance_norm(x: Tensor, dx: Tensor, w: Weights, dw: Weights) -> tuple[Tensor, Tensor, Pull]:
    """Normalise each plane: x̂ = (x − mean) / σ, y = γ x̂ + β.

    The Jacobian of x̂ is symmetric, J v = (v − ⟨v⟩ − x̂ ⟨x̂ v⟩) / σ with ⟨·⟩ the mean of a plane, and
    dJ v = −(dσ/σ) J v − (dx̂ ⟨x̂ v⟩ + x̂ ⟨dx̂ v⟩) / σ, where dσ = ⟨x̂ dx⟩.
    """
    count, channels, height, width = x.shape
    pixels = height * width
    gamma, beta, dgamma, dbeta = (v.reshape(1, channels, 1, 1) for v in (*w, *dw))
    normed, mean, rstd = torch.native_group_norm(
        x, None, None, count, channels, pixels, channels, NORM_EPSILON
    )

    def jacobian(v: Tensor, scale: Tensor | None, parts: Sequence[bool]) -> list[Tensor]:
        found: list[Tensor] = _aten.native_group_norm_backward(
            v, x, mean, rstd, scale, count, channels, pixels, channels, parts
        )
        return found

    dnormed = jacobian(dx, None, [True, False, False])[0]
    y = (normed * gamma).add_(beta)
    dy = (dnormed * gamma).add_(normed * dgamma).add_(dbeta)
    inverse = rstd.view(count, channels, 1, 1)

    def pull(g: Tensor, dg: Tensor) -> Pulled:
        along, dalong = _plane_means(normed, g), _plane_means(dnormed, g)
        growth = inverse * _plane_means(normed, dx)  # dσ / σ
        g_plain = jacobian(g, None, [True, False, False])[0]
        dg_x, dg_gamma, dg_beta = jacobian(dg, gamma.flatten(), [True, True, True])
        dg_x.add_(g_plain * (dgamma - growth * gamma))
        dg_x.sub_(normed * (inverse * gamma * dalong)).sub_(dnormed * (inverse * gamma * along))
        dg_gamma += pixels * dalong.sum(dim=0).flatten()
        return g_plain * gamma, dg_x, [dg_gamma.view_as(w[0]), dg_beta.view_as(w[1])]

    return y, dy, pull


def _plane_means(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of a·b over each plane, `(N, C, 1, 1)`."""
    return (a * b).mean(dim=(2, 3), keepdim=True)


def _relu(x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor, Pull]:
    def gated(v: Tensor) -> Tensor:
        kept: Tensor = _aten.threshold_backward(v, x, 0)
        return kept

    return x.relu(), gated(dx), lambda g, dg: (gated(g), gated(dg), [])


def _average_pool(x: Tensor, dx: Tensor, size: int) -> tuple[Tensor, Tensor, Pull]:
    def spread(g: Tensor) -> Tensor:
        sides = [size, size]
        back: Tensor = _aten.avg_pool2d_backward(g, x, sides, sides, [0, 0], False, True, None)
        return back

    return (
        avg_pool2d(x, size),
        avg_pool2d(dx, size),
        lambda g, dg: (spread(g), spread(dg), []),
    )


def _max_pool(x: Tensor, dx: Tensor, size: int) -> tuple[Tensor, Tensor, Pull]:
    y, chosen = max_pool2d_with_indices(x, [size, size])

    def spread(g: Tensor) -> Tensor:
        sides = [size, size]
        back: Tensor = _aten.max_pool2d_with_indices_backward(
            g, x, sides, sides, [0, 0], [1, 1], False, chosen
        )
        return back

    dy = dx.flatten(2).gather(2, chosen.flatten(2)).view_as(y)
    return y, dy, lambda g, dg: (spread(g), spread(dg), [])
