"""Every layer on dual numbers: values and their derivatives along one direction of the weights.

With θ + εu in place of the weights θ, every quantity has a value and a tangent d/dε. A layer maps
a value and a tangent forward and returns a *pull*, which maps the loss's gradient with respect to
the layer's output, and that gradient's tangent, back to its input. The tangents of the weights'
gradients that come out are the Hessian-vector product H u (Pearlmutter 1994).

Activations are laid out as in `plain_layers`. The tangent of the images is None: they do not depend
on the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, fold

from models.layers import AveragePool, Convolution, InstanceNorm, Layer, Linear, MaxPool
from server_toolkit.distill.plain_layers import (
    NORM_EPSILON,
    Weights,
    aten,
    average_pool,
    convolution_back,
    for_product,
    gate,
    grouped,
    max_pool,
    side_by_side,
    spread_average,
    weight_and_bias,
)

# (gradient, its tangent) at the output -> the same at the input, and the weights' tangents
DualPulled = tuple[Tensor, Tensor, list[Tensor]]
DualPull = Callable[[Tensor, Tensor], DualPulled]
Dual = tuple[Tensor, Tensor, DualPull]
# With fewer channels than this, a transposed convolution is slower than a product and a fold.
FEW_CHANNELS = 8


def dual_layer(
    layer: Layer,
    x: Tensor,
    dx: Tensor | None,
    w: Weights,
    dw: Weights,
    students: int,
    product_dtype: torch.dtype | None,
) -> Dual:
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


def _convolution(
    x: Tensor,
    dx: Tensor | None,
    w: Weights,
    dw: Weights,
    students: int,
    product_dtype: torch.dtype | None,
) -> Dual:
    dtype = x.dtype
    weight, bias = weight_and_bias([v.flatten(0, 1) for v in w], product_dtype)
    dweight, dbias = weight_and_bias([v.flatten(0, 1) for v in dw], product_dtype)
    margin = weight.shape[2] // 2
    x = for_product(x, product_dtype)
    y = conv2d(x, weight, bias, padding=margin, groups=students)
    dy = conv2d(x, dweight, dbias, padding=margin, groups=students)
    if dx is not None:
        dx = for_product(dx, product_dtype)
        dy += conv2d(dx, weight, padding=margin, groups=students)

    def pull(g: Tensor, dg: Tensor) -> DualPulled:
        # d(x * g) = dx * g + x * dg for the weights; the same with the weights in x's place.
        g, dg = for_product(g, product_dtype), for_product(dg, product_dtype)
        folds = dx is None and students == 1 and x.shape[1] < FEW_CHANNELS
        parts = [not folds, True, bias is not None]
        dg_x, *found = convolution_back(dg, x, weight, students, parts)
        g_x = g  # nobody asks for it in the first layer, which has no dx
        if dx is not None:
            g_x, more, _ = convolution_back(g, dx, weight, students, [True, True, False])
            found[0] += more
        if folds:
            dg_x = _folded(torch.cat([dg, g], dim=1), torch.cat([weight, dweight]))
        else:
            dg_x += convolution_back(g, x, dweight, students, [True, False, False])[0]
        gradients = [found[index].view(v.shape).to(dtype) for index, v in enumerate(w)]
        return g_x.to(dtype), dg_x.to(dtype), gradients

    return y.to(dtype), dy.to(dtype), pull


def _folded(g: Tensor, weight: Tensor) -> Tensor:
    """Return the transposed convolution of `g` `(N, O, H, W)` as a product and a fold."""
    kernel = weight.shape[2]
    columns = weight.flatten(1).T @ g.flatten(2)
    return fold(columns, (g.shape[2], g.shape[3]), kernel, padding=kernel // 2)


def _linear(
    x: Tensor,
    dx: Tensor | None,
    w: Weights,
    dw: Weights,
    students: int,
    product_dtype: torch.dtype | None,
) -> Dual:
    shape, dtype = x.shape, x.dtype
    weight, bias = weight_and_bias(w, product_dtype)  # (S, outputs, F), (S, outputs)
    dweight, dbias = weight_and_bias(dw, product_dtype)
    if dx is None:
        dx = torch.zeros_like(x)
    xs, dxs = (for_product(grouped(v, students), product_dtype) for v in (x, dx))
    y, dy = xs @ weight.mT, xs @ dweight.mT + dxs @ weight.mT
    if bias is not None and dbias is not None:
        y, dy = y + bias[:, None], dy + dbias[:, None]

    def pull(g: Tensor, dg: Tensor) -> DualPulled:
        gs, dgs = (for_product(grouped(v, students), product_dtype) for v in (g, dg))
        gradients = [dgs.mT @ xs + gs.mT @ dxs, dgs.sum(dim=1)][: len(w)]
        g_x, dg_x = gs @ weight, dgs @ weight + gs @ dweight
        g_x, dg_x = (side_by_side(v).reshape(shape).to(dtype) for v in (g_x, dg_x))
        return g_x, dg_x, [v.to(dtype) for v in gradients]

    return side_by_side(y).to(dtype), side_by_side(dy).to(dtype), pull


def _instance_norm(x: Tensor, dx: Tensor, w: Weights, dw: Weights) -> Dual:
    """Normalise each plane: x̂ = (x − mean) / σ, y = γ x̂ + β.

    The Jacobian of x̂ is symmetric, J v = (v − ⟨v⟩ − x̂ ⟨x̂ v⟩) / σ with ⟨·⟩ the mean of a plane, and
    dJ v = −(dσ/σ) J v − (dx̂ ⟨x̂ v⟩ + x̂ ⟨dx̂ v⟩) / σ, where dσ = ⟨x̂ dx⟩.
    """
    count, channels, height, width = x.shape
    pixels, planes = height * width, (count, channels, 1, 1)
    gamma, beta, dgamma, dbeta = (v.reshape(1, channels, 1, 1) for v in (*w, *dw))
    # Every plane as a channel of one image: torch then returns sums over single planes.
    sizes = (1, count * channels, pixels, count * channels)
    normed, mean, rstd = torch.native_group_norm(x, None, None, *sizes, NORM_EPSILON)
    inverse, ones = rstd.view(planes), torch.ones_like(rstd).flatten()

    def jacobian(v: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return J (scale v), and the sums of x̂ v and of v over each plane."""
        product, along, total = aten.native_group_norm_backward(
            v, x, mean, rstd, scale, *sizes, [True, True, True]
        )
        return product, along.view(planes), total.view(planes)

    dnormed, stretch, _ = jacobian(dx, ones)
    growth = inverse * stretch / pixels  # dσ / σ
    y = (normed * gamma).add_(beta)
    dy = (dnormed * gamma).add_(normed * dgamma).add_(dbeta)

    def pull(g: Tensor, dg: Tensor) -> DualPulled:
        g_plain, along, _ = jacobian(g, ones)
        dalong = (dnormed * g).sum(dim=(2, 3), keepdim=True)
        scale = gamma.expand(planes).flatten()
        dg_x, of_gamma, of_beta = jacobian(dg, scale)
        share = inverse * gamma / pixels
        dg_x.add_(g_plain * (dgamma - growth * gamma))
        dg_x.sub_(normed * (share * dalong)).sub_(dnormed * (share * along))
        gradients = [(of_gamma + dalong).sum(dim=0), of_beta.sum(dim=0)]
        return g_plain * gamma, dg_x, [v.view(w[0].shape) for v in gradients]

    return y, dy, pull


def _relu(x: Tensor, dx: Tensor) -> Dual:
    y = x.relu_()  # nobody else needs what an earlier layer returned
    return y, gate(dx, y), lambda g, dg: (gate(g, y), gate(dg, y), [])


def _average_pool(x: Tensor, dx: Tensor, size: int) -> Dual:
    def pull(g: Tensor, dg: Tensor) -> DualPulled:
        return spread_average(g, x, size), spread_average(dg, x, size), []

    return average_pool(x, size), average_pool(dx, size), pull


def _max_pool(x: Tensor, dx: Tensor, size: int) -> Dual:
    y, spread, chosen = max_pool(x, size)
    dy = dx.flatten(2).gather(2, chosen.flatten(2)).view_as(y)
    return y, dy, lambda g, dg: (spread(g), spread(dg), [])
