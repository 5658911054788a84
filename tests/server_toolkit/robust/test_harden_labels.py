"""Teachers answer with the mean of their tempered probabilities."""

import numpy as np
import pytest
import torch

from server_toolkit.robust.harden_labels import Teachers

IMAGES = torch.zeros(1, 1, 2, 2)


def network(*logits):
    return lambda images: torch.tensor([logits], dtype=torch.float64)


def softmax(*z):
    return np.exp(z) / np.exp(z).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_an_ensemble_averages_probabilities_not_logits(temperature):
    teachers = Teachers([network(2.0, 0.0, 1.0), network(-1.0, 3.0, 0.0)], temperature)
    first = softmax(*np.array([2.0, 0.0, 1.0]) / temperature)
    second = softmax(*np.array([-1.0, 3.0, 0.0]) / temperature)
    np.testing.assert_allclose(teachers(IMAGES)[0], (first + second) / 2, rtol=1e-12)


def test_one_teacher_at_temperature_one_is_its_softmax_to_the_bit():
    logits = torch.randn(5, 10)
    answer = Teachers([lambda images: logits], 1.0)(IMAGES)
    assert torch.equal(answer, logits.softmax(dim=1))
