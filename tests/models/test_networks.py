"""Architectures: the sizes the papers print, and agreement with the torch-free layout."""

import numpy as np
import pytest
import torch

from models import ModelSpec, SpecError, layout_of
from models.layers import AveragePool, Convolution, InstanceNorm, Linear, MaxPool, ReLU
from models.networks import build_model, flat_parameters, load_flat


def spec(**changes):
    fields = dict(channels=1, image_size=32, classes=10, mean=(0.5,), std=(0.25,))
    return ModelSpec(**(fields | changes))


CHAIN = (
    Convolution(outputs=6, kernel=5, bias=False),
    ReLU(),
    InstanceNorm(),
    MaxPool(size=3),
    Convolution(outputs=4, kernel=1),
    AveragePool(size=2),
    Linear(outputs=9),
    ReLU(),
    Linear(outputs=5, bias=False),
)
RGB = dict(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(("changes", "count"), [({}, 317_706), (RGB, 320_010)])
def test_convnet_has_the_published_number_of_parameters(changes, count):
    model = build_model(spec(**changes))
    assert sum(p.numel() for p in model.parameters()) == count
    assert layout_of(spec(**changes)).size == count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        RGB,
        {"width": 32, "image_size": 16},
        {"depth": 2, "classes": 7},
        {"architecture": "alexnet"},
        RGB | {"architecture": "alexnet"},
        {"image_size": 28},
        {"image_size": 13, "depth": 2},
        RGB | {"architecture": "alexnet", "image_size": 27},
        {"architecture": "chain"},
        RGB | {"architecture": "chain", "layers": CHAIN, "image_size": 13},
    ],
)
def test_layout_equals_torch_parameters(changes):
    model = build_model(spec(**changes), seed=0)
    torch_side = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    assert torch_side == [(p.name, p.shape) for p in layout_of(spec(**changes)).parameters]
    images = torch.rand(2, spec(**changes).channels, *2 * [spec(**changes).image_size])
    assert model(images).shape == (2, spec(**changes).classes)


def test_alexnet_matches_a_count_by_hand():
    convolutions = (3 * 25 + 1) * 128 + (128 * 25 + 1) * 192 + (192 * 9 + 1) * 256
    convolutions += (256 * 9 + 1) * 192 + (192 * 9 + 1) * 192
    assert layout_of(spec(**RGB, architecture="alexnet")).size == convolutions + 192 * 16 * 10 + 10


def test_flat_vector_round_trips_through_a_model():
    source, target = build_model(spec(), seed=1), build_model(spec(), seed=2)
    load_flat(target, flat_parameters(source))
    assert np.array_equal(flat_parameters(source), flat_parameters(target))
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(source(images), target(images))


def test_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = flat_parameters(build_model(spec(), seed=3))
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(first, flat_parameters(build_model(spec(), seed=3)))


def test_normalisation_is_inside_the_model():
    model = build_model(spec(mean=(0.2,), std=(0.1,)), seed=0)
    assert torch.allclose(
        model.normalize(torch.full((1, 1, 32, 32), 0.3)), torch.ones(1), atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"image_size": 4}, "image_size 4 use fewer"),
        ({"image_size": 12, "depth": 4}, "norm3: the norm of a single pixel"),
        ({"architecture": "alexnet", "image_size": 7}, "pool4: there is no square"),
        ({"layers": CHAIN}, 'belong to architecture "chain"'),
        ({"architecture": "chain", "layers": CHAIN * 17}, "64 are allowed"),
        ({"std": (0.0,)}, "std"),
        ({"mean": (0.1, 0.2)}, "mean"),
        ({"architecture": "vit"}, "convnet"),
        ({"width": 0}, "width"),
    ],
)
def test_a_bad_spec_says_what_to_change(changes, word):
    with pytest.raises(SpecError, match=word):
        spec(**changes)
