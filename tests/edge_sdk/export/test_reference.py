import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.export import reference
from edge_sdk.export.reference import at_kinks, gradient_errors, highest, lowest
from models import ModelSpec
from models.networks import build_model

TINY = ModelSpec(channels=1, image_size=4, classes=2, width=4, depth=1, mean=(0.5,), std=(0.25,))


def random_images(*shape):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_gradients_at_a_kink_are_those_of_either_side():
    """Activations of 1e-7: on with the highest scores, off with the lowest."""
    model = build_model(TINY, seed=0).double()
    with torch.no_grad():
        model.features.norm0.weight.zero_()
        model.features.norm0.bias.fill_(1e-7)
    case = model.layers(), random_images(2, 1, 4, 4), np.eye(2, dtype=np.float32)
    truth = reference.run(*case).gradients["features.norm0.bias"]
    assert np.linalg.norm(truth) > 0
    np.testing.assert_allclose(at_kinks(*case, highest)["features.norm0.bias"], truth)
    assert not at_kinks(*case, lowest)["features.norm0.bias"].any()


def pooling(values):
    """A max pool of one window of `values` and a linear layer: logits (max, 0)."""
    linear = nn.Linear(1, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0], [0.0]]))
        linear.bias.zero_()
    layers = [("pool", nn.MaxPool2d(2)), ("flatten", nn.Flatten()), ("linear", linear.double())]
    images = np.array(values, np.float32).reshape(1, 1, 2, 2)
    return layers, images, np.array([[0, 1]], np.float32)


def taken(gradients):
    return np.flatnonzero(gradients["images"].ravel()).tolist()


@pytest.mark.parametrize(
    ("values", "first", "last"),
    [
        ([0.5, 0.5, 0.5, 0.5], [0], [3]),
        ([0.2, 0.5, 0.5 + 1e-6, 0.4], [1], [2]),
        ([0.5, 0.5 + 1e-4, 0.5, 0.5], [1], [1]),
    ],
    ids=["equal", "nearly equal", "apart"],
)
def test_of_nearly_equal_maxima_either_end_may_take_the_gradient(values, first, last):
    case = pooling(values)
    assert taken(at_kinks(*case, lowest)) == first
    assert taken(at_kinks(*case, highest)) == last


def test_away_from_kinks_nothing_changes():
    torch.manual_seed(0)
    layers = [
        ("conv", nn.Conv2d(1, 3, 3, padding=1)),
        ("relu", nn.ReLU()),
        ("pool", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("linear", nn.Linear(27, 2)),
    ]
    case = reference.copied(layers, torch.float64), random_images(2, 1, 7, 7), np.eye(2)[:2]
    truth = reference.run(*case).gradients
    for score in (lowest, highest):
        for name, gradient in at_kinks(*case, score).items():
            np.testing.assert_allclose(gradient, truth[name], rtol=1e-12, atol=1e-15)


def errors_of(found, case):
    truth = reference.run(*case)
    return gradient_errors(found, *case, truth=truth, tolerance=1e-4)


def test_a_gradient_that_went_to_the_other_of_two_equals_is_no_error():
    case = pooling([0.1, 0.5, 0.2, 0.5])
    right = reference.run(*case).gradients["images"].astype(np.float32)
    other = right[:, :, ::-1].copy()  # from the second pixel to the fourth
    assert np.flatnonzero(other).tolist() == [3]
    assert errors_of({"images": other}, case)["images"] == 0
    wrong = right[:, :, :, ::-1].copy()  # to a pixel that is not a maximum
    apart = pooling([0.1, 0.5, 0.2, 0.3])
    assert errors_of({"images": wrong}, apart)["images"] > 1


def test_what_float32_loses_is_no_error_and_more_is():
    """Two norms in a row: the first one's scale hardly matters, so its gradient is mostly noise."""
    torch.manual_seed(0)
    layers = [
        ("conv", nn.Conv2d(1, 4, 3, padding=1)),
        ("norm", nn.GroupNorm(4, 4)),
        ("again", nn.GroupNorm(4, 4)),
        ("relu", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("linear", nn.Linear(36, 2)),
    ]
    images, labels = random_images(2, 1, 3, 3), np.eye(2, dtype=np.float32)
    case = reference.copied(layers, torch.float64), images, labels
    truth = reference.run(*case)
    found = reference.run(layers, images, labels).gradients["norm.weight"].astype(np.float32)
    off = np.linalg.norm(found - truth.gradients["norm.weight"])
    assert off > 1e-4 * np.linalg.norm(truth.gradients["norm.weight"])
    assert errors_of({"norm.weight": found}, case)["norm.weight"] == 0
    assert errors_of({"norm.weight": found * 3}, case)["norm.weight"] > 0.5
