"""Every flag is raised by a model that deserves it, and a sound model raises none."""

import numpy as np
import pytest
import torch
from torch.nn.functional import dropout

from server_toolkit.robust.evaluation import Judgement, Outcome
from server_toolkit.robust.evaluation.assess import AssessSettings, assess
from server_toolkit.robust.evaluation.flags import Evidence, find_flags
from server_toolkit.robust.evaluation.probes import probe
from tests.server_toolkit.robust.evaluation.networks import (
    CLASSES,
    EPSILON,
    LateGradient,
    alive_where,
    blobs,
    corner,
    off_grid,
    quantised,
    saturated,
    sound_model,
)

IMAGES, LABELS = blobs(400, seed=2)


@pytest.fixture(scope="module")
def sound():
    torch.set_num_threads(1)
    return sound_model()


def flags(model, images=IMAGES, labels=LABELS, *, surrogate=None, trained_epsilon=None, **changes):
    """Return the sentences of the flags that a model raises, by name."""
    settings = AssessSettings(**{"epsilons": (EPSILON,), "square_queries": 150, **changes})
    result = assess(
        model, images, labels, settings, surrogate=surrogate, trained_epsilon=trained_epsilon
    )
    return {flag.name: flag.sentence for flag in result.flags}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sound_model_raises_no_flag(sound, norm):
    epsilon = EPSILON if norm == "linf" else 0.4
    curve = tuple(epsilon * share for share in (0.5, 1, 1.5, 2))
    settings = AssessSettings(
        norm=norm, epsilons=(epsilon,), attacks="standard", square_queries=100, curve=curve
    )
    result = assess(sound, IMAGES, LABELS, settings, surrogate=sound, trained_epsilon=epsilon)
    assert result.flags == ()
    robust = result.judgements[0].robust.mean()
    assert 0.2 < robust < result.judgements[0].correct("clean").mean() < 1  # there was work to do


def test_outputs_so_large_that_the_softmax_saturates(sound):
    found = flags(saturated(sound), attacks="quick,square")
    assert "softmax saturates" in found["zero_gradients"]
    assert "grey square" in found["survives_large_epsilon"]
    assert "that all attacks with gradients left" in found["square_beats_gradients"]


def test_autoattack_sees_through_saturated_outputs(sound):
    options = dict(epsilons=(EPSILON,), attacks="autoattack", square_queries=100)
    masked = assess(saturated(sound), IMAGES, LABELS, AssessSettings(**options))
    open_ = assess(sound, IMAGES, LABELS, AssessSettings(**options))
    difference = masked.judgements[0].robust.mean() - open_.judgements[0].robust.mean()
    assert abs(difference) < 0.02
    assert [(flag.name, flag.level) for flag in masked.flags] == [("zero_gradients", "caution")]


def test_square_inside_autoattack_breaks_what_gradients_left(sound):
    found = flags(quantised(sound), attacks="autoattack")
    assert "square_beats_gradients" in found


def test_rounding_inside_the_model(sound):
    found = flags(quantised(sound))
    assert "some operation has no slope" in found["zero_gradients"]


def test_another_models_images_break_what_own_gradients_left(sound):
    found = flags(quantised(sound), surrogate=sound)
    assert "Images made on another model break" in found["transfer_beats_gradients"]


def test_one_step_breaks_more_than_many(sound):
    only_on_grid = alive_where(sound, lambda x: off_grid(x) < 1e-3)
    found = flags(only_on_grid, trained_epsilon=EPSILON)
    assert "FGSM, one step, breaks" in found["one_step_beats_many"]
    assert "zero_gradients" not in found  # the clean images do have a slope


def test_random_starts_decide(sound):
    lucky = alive_where(sound, lambda x: torch.sin(1e4 * corner(x)) > 0.2)
    assert "5 more random starts of PGD break" in flags(lucky)["restarts_matter"]


def test_twenty_steps_do_not_arrive(sound):
    assert "PGD of 100 steps break" in flags(LateGradient(sound, steps=40))["more_steps_matter"]


def test_accuracy_that_rises_with_epsilon(sound):
    small_changes = alive_where(sound, lambda x: (corner(x) - 0.5).abs() < EPSILON)
    sizes = (EPSILON, 2.5 * EPSILON)
    for options in (dict(curve=sizes), dict(epsilons=sizes, attacks="pgd")):
        found = flags(small_changes, **options)
        assert "though the larger ball holds the smaller one" in found["rises_with_epsilon"]


def test_dropout_left_on(sound):
    found = flags(lambda x: sound(dropout(x, 0.1, training=True)))
    assert "dropout, noise" in found["random_outputs"]


def test_statistics_of_the_batch_in_use(sound):
    found = flags(lambda x: sound(x - x.mean(0) + 0.5))
    assert "evaluation mode" in found["depends_on_batch"]
    assert "random_outputs" not in found


def test_probabilities_instead_of_logits(sound):
    assert "logits before the softmax" in flags(lambda x: sound(x).softmax(1))["probabilities"]


@pytest.mark.parametrize(
    ("inverse", "name"),
    [
        (lambda x: x / 255, "scaled to [0, 255]"),
        (lambda x: (x + 1) / 2, "scaled to [-1, 1]"),
        (lambda x: x * 0.27 + 0.5, "standardised by channel"),
    ],
)
def test_normalisation_left_outside_of_the_model(sound, inverse, name):
    sentence = flags(lambda x: sound(inverse(x)))["wrong_input_scale"]
    assert f"on images {name}" in sentence


def test_images_divided_twice(sound):
    found = flags(lambda x: sound(255 * x), images=IMAGES / np.float32(255))
    assert "divided by 255 twice" in found["dark_images"]


def test_too_few_images(sound):
    found = flags(sound, IMAGES[:40], LABELS[:40])
    assert set(found) == {"few_images", "few_images_in_class"}
    assert "of class 0, 1, 2, 3" in found["few_images_in_class"]


def test_a_model_that_guesses():
    guess = torch.nn.functional.one_hot(torch.zeros(1, dtype=torch.long), CLASSES).float()
    found = flags(lambda x: guess + 0 * x.flatten(1).sum(1, keepdim=True))
    assert "that is no robustness" in found["low_clean_accuracy"]


def test_another_epsilon_than_in_training(sound):
    found = flags(sound, trained_epsilon=0.1)
    assert "hardened at epsilon 0.1 and is judged at 0.09" in found["other_epsilon"]
    assert "other_epsilon" not in flags(sound, trained_epsilon=EPSILON)


def test_a_surrogate_that_is_another_model(sound):
    def without_gradient(x):
        return sound(x).detach()

    found = flags(without_gradient, surrogate=lambda x: -sound(x))
    assert "--transfer-from" in found["surrogate_disagrees"]
    assert "surrogate_disagrees" not in flags(without_gradient, surrogate=sound)


@pytest.mark.parametrize(("broken", "raised"), [(4, False), (5, True)])
def test_square_may_break_one_in_a_hundred_by_luck(sound, broken, raised):
    def outcome(attack, source, gone):
        correct = np.ones(len(LABELS), bool)
        correct[:gone] = False
        return Outcome(attack=attack, source=source, correct=correct)

    judgement = Judgement(
        norm="linf", epsilon=0.1, seed=0, labels=LABELS, classes=CLASSES,
        outcomes=(
            outcome("clean", "none", 0),
            outcome("pgd", "white_box", 100),
            outcome("square", "scores", 100 + broken),
        ),
    )  # fmt: skip
    probes = probe(sound, IMAGES, LABELS, robust=judgement.robust, epsilon=0.01)
    found = find_flags(Evidence(judgements=[judgement], curve={}, probes=probes))
    assert ("square_beats_gradients" in [flag.name for flag in found]) == raised
