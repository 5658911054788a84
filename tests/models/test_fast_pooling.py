"""The fast average pooling is torch's, to the bit, in value and in both derivatives."""

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from models import ModelSpec
from models.fast_pooling import FastAveragePool2d, use_fast_pooling
from models.networks import build_model

SPEC = ModelSpec(channels=1, image_size=28, classes=10, width=8, depth=3, mean=(0.3,), std=(0.4,))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (4, 9), (2, 3)])
def test_value_and_gradient_keep_every_bit(height, width):
    torch.manual_seed(0)
    x = torch.randn(3, 5, height, width, requires_grad=True)
    weight = torch.randn(3, 5, height // 2, width // 2)
    fast, plain = FastAveragePool2d()(x), avg_pool2d(x, 2)
    assert torch.equal(fast, plain)
    (fast_gradient,) = torch.autograd.grad((fast * weight).sum(), x)
    (plain_gradient,) = torch.autograd.grad((plain * weight).sum(), x)
    assert torch.equal(fast_gradient, plain_gradient)


def test_second_derivatives_agree():
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    pool = FastAveragePool2d()
    assert torch.autograd.gradcheck(pool, x)
    assert torch.autograd.gradgradcheck(pool, x)


def test_vmap_pools_every_network_of_a_stack():
    x = torch.randn(4, 2, 3, 6, 6)
    assert torch.equal(
        torch.vmap(FastAveragePool2d())(x), avg_pool2d(x.flatten(0, 1), 2).view(4, 2, 3, 3, 3)
    )


def test_a_network_keeps_its_gradients_and_loses_its_slow_layers():
    images = torch.rand(4, 1, 28, 28)
    plain, fast = build_model(SPEC, seed=0), build_model(SPEC, seed=0)
    use_fast_pooling(fast)
    assert not any(isinstance(module, nn.AvgPool2d) for module in fast.modules())
    gradients = [
        torch.autograd.grad(network(images).square().sum(), list(network.parameters()))
        for network in (plain, fast)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    "options", [dict(kernel_size=3), dict(kernel_size=2, stride=1), dict(kernel_size=2, padding=1)]
)
def test_another_kind_of_pooling_is_left_alone(options):
    network = nn.Sequential(nn.AvgPool2d(**options))
    use_fast_pooling(network)
    assert isinstance(network[0], nn.AvgPool2d)
