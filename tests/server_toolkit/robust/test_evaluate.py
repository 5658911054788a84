"""Reports count what they should, and judge every predictor on the same images."""

import json
import math

import numpy as np
import pytest
import torch

from server_toolkit.errors import ConfigError
from server_toolkit.robust.evaluate import Accuracy, evaluate


def threshold_model():
    """Class 1 where the mean pixel is above 0.5: robust exactly to |mean - 0.5| > epsilon."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        model[1].bias.copy_(torch.tensor([2.0, -2.0]))
    return model


def grey(levels):
    return np.stack([np.full((1, 2, 2), level, np.float32) for level in levels])


def test_wilson_interval_known_answer():
    # 8 of 10: the closed form with z = 1.959964 worked by hand.
    z2 = 1.959963984540054**2
    middle = (0.8 + z2 / 20) / (1 + z2 / 10)
    half = math.sqrt(z2) * math.sqrt(0.8 * 0.2 / 10 + z2 / 400) / (1 + z2 / 10)
    low, high = Accuracy(8, 10).interval
    assert (low, high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # the value textbooks print


def test_wilson_interval_stays_in_the_unit_range():
    assert Accuracy(0, 20).interval[0] == 0
    assert Accuracy(20, 20).interval[1] == 1
    assert Accuracy(0, 0).interval == (0, 1)


def test_accuracy_under_attack_of_a_linear_threshold():
    images = grey([0.1, 0.42, 0.48, 0.55, 0.58, 0.9])
    labels = np.array([0, 0, 0, 1, 1, 1])
    report = evaluate(threshold_model(), images, labels, epsilons=[0.05 + 1e-3, 0.1], batch_size=4)
    assert report.score().overall == Accuracy(6, 6)
    for attack in ("fgsm", "pgd"):
        assert report.score(attack=attack, epsilon=0.05 + 1e-3).overall == Accuracy(4, 6)
        score = report.score(attack=attack, epsilon=0.1)
        assert score.overall == Accuracy(2, 6)
        assert score.by_class == (Accuracy(1, 3), Accuracy(1, 3))


def test_predictors_judge_the_images_crafted_on_the_model():
    seen = []

    def always_zero(batch):
        seen.append(batch.copy())
        return np.tile(np.array([[1, 0]], np.float32), (len(batch), 1))

    images = grey([0.1, 0.9])
    labels = np.array([0, 1])
    report = evaluate(
        threshold_model(), images, labels, epsilons=[0.1], predictors={"onnx": always_zero}
    )
    assert report.score(predictor="onnx", attack="pgd", epsilon=0.1).overall == Accuracy(1, 2)
    np.testing.assert_array_equal(seen[0], images)
    np.testing.assert_allclose(seen[1], grey([0.2, 0.8]), atol=1e-6)  # moved to the threshold


def test_report_is_json_ready_and_repeatable():
    images, labels = grey([0.3, 0.45, 0.6]), np.array([0, 0, 1])
    first, second = (
        evaluate(threshold_model(), images, labels, epsilons=[0.1], seed=5).to_dict()
        for _ in range(2)
    )
    assert json.loads(json.dumps(first)) == second


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (grey([0.5]), np.array([0, 1])),
        (np.zeros((0, 1, 2, 2), np.float32), np.zeros(0, np.int64)),
        (grey([7.0]), np.array([0])),
        (grey([np.nan]), np.array([0])),
    ],
)
def test_unfit_images_are_refused(images, labels):
    with pytest.raises(ConfigError):
        evaluate(threshold_model(), images, labels, epsilons=[0.1])


def test_unmeasured_score_is_a_key_error():
    report = evaluate(threshold_model(), grey([0.5]), np.array([0]), epsilons=[0.1])
    with pytest.raises(KeyError, match="epsilon"):
        report.score(attack="pgd", epsilon=0.3)
