"""Judging counts the images that stand, and says with which knowledge they were attacked."""

import json

import numpy as np
import pytest
import torch

from server_toolkit.errors import ConfigError
from server_toolkit.robust.evaluation import Outcome, judge
from tests.server_toolkit.robust.evaluation.networks import grey, threshold_model

LEVELS = [0.1, 0.42, 0.48, 0.55, 0.58, 0.9]
IMAGES, LABELS = grey(LEVELS), np.array([0, 0, 0, 1, 1, 1])


def test_what_stands_is_what_the_formula_says():
    judgement = judge(threshold_model(), IMAGES, LABELS, epsilon=0.06)
    margins = np.abs(np.array(LEVELS) - 0.5)
    for name in ("fgsm", "pgd"):
        np.testing.assert_array_equal(judgement.correct(name), margins > 0.06)
    np.testing.assert_array_equal(judgement.robust, margins > 0.06)
    assert judgement.accuracy("clean").correct == 6


def test_an_image_with_a_wrong_clean_answer_is_never_robust():
    labels = LABELS.copy()
    labels[0] = 1  # an attack moves it towards class 0, away from its label
    judgement = judge(threshold_model(), IMAGES, labels, epsilon=0.45)
    assert not judgement.correct("clean")[0]
    assert not judgement.correct("fgsm")[0]


def test_the_record_has_classes_worst_class_and_intervals():
    record = judge(threshold_model(), IMAGES, LABELS, epsilon=0.06).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert [a["name"] for a in record["attacks"]] == ["clean", "fgsm", "pgd"]
    robust = record["robust"]
    assert robust["correct_images"] == "110011"
    assert [c["correct"] for c in robust["by_class"]] == [2, 2]
    assert robust["worst_class"]["class"] == 0
    assert robust["low"] < robust["accuracy"] == 4 / 6 < robust["high"]


def test_the_worst_class_is_one_with_images():
    labels = np.array([0, 0, 0, 0, 1, 1])
    record = judge(threshold_model(), IMAGES, labels, epsilon=0.001).to_dict()
    worst = record["attacks"][0]["worst_class"]
    assert (worst["class"], worst["correct"], worst["count"]) == (0, 3, 4)


def test_one_seed_and_one_batch_size_fix_the_result():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8), torch.nn.ReLU())
    model.append(torch.nn.Linear(8, 3))
    images = np.random.default_rng(0).random((60, 1, 2, 2), np.float32)
    labels = model(torch.from_numpy(images)).argmax(1).numpy()
    options = dict(epsilon=0.1, seed=3, batch_size=16, steps=1, attacks="pgd")
    first, second, other = (
        judge(model, images, labels, **{**options, "seed": seed}) for seed in (3, 3, 4)
    )
    assert first.to_dict() == second.to_dict()
    assert (first.correct("pgd") != other.correct("pgd")).any()


def test_progress_ends_at_the_total():
    seen = []
    judge(
        threshold_model(), IMAGES, LABELS, epsilon=0.1, batch_size=4,
        progress=lambda *step: seen.append(step[:2]),
    )  # fmt: skip
    fgsm, pgd = 3, 41  # passes an image: 1 or 20 gradients of 2 each, and an answer
    whole = 6 * (fgsm + pgd)
    assert seen == [
        (4 * fgsm, whole), (6 * fgsm, whole), (6 * fgsm + 4 * pgd, whole), (whole, whole)
    ]  # fmt: skip


def test_progress_tells_of_autoattacks_parts_by_their_cost():
    seen = []
    judge(
        threshold_model(), IMAGES, LABELS, epsilon=0.1, attacks="autoattack", square_queries=50,
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    left, standing = [], 6
    for done, total, text in seen[:-1]:
        standing = int(text.partition(": ")[2].split()[0])
        left.append(standing)
        behind = {"apgd-ce": 200, "apgd-t": 400, "fab-t": 700, "square": 750}[text.split()[-1]]
        assert total == 6 * 751
        assert done == standing * behind + (6 - standing) * 751
    assert len(left) == 4
    assert 0 < standing < 6
    assert seen[-1][:2] == (6 * 751, 6 * 751)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (grey([0.5]), np.array([0, 1]), "do not fit"),
        (np.zeros((0, 1, 2, 2), np.float32), np.zeros(0, np.int64), "at least 1"),
        (grey([7.0]), np.array([0]), r"reach from 7 to 7.*1/255"),
        (grey([np.nan]), np.array([0]), "finite"),
        (grey([0.5]).astype(np.float64), np.array([0]), "images are float64"),
        (grey([0.5]), np.array([0.0]), "labels float64"),
        (grey([0.5]), np.array([-1]), "count classes from 0; there is -1"),
        (grey([0.5]), np.array([2]), "label 2 is no class of a model with 2 outputs"),
    ],
)
def test_unfit_images_are_refused(images, labels, message):
    with pytest.raises(ConfigError, match=message):
        judge(threshold_model(), images, labels, epsilon=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(attacks="fgsm,magic"), "unknown attack 'magic'"),
        (dict(attacks="pgd", norm="l2"), "l∞ ball"),
        (dict(epsilon=0.0), "above 0"),
    ],
)
def test_unfit_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        judge(threshold_model(), IMAGES, LABELS, **{"epsilon": 0.1, **options})


def without_gradient(model):
    return lambda x: model(x).detach()


def test_a_model_without_gradients_is_attacked_by_transfer_and_by_square():
    model = threshold_model()
    judgement = judge(
        without_gradient(model), IMAGES, LABELS, epsilon=0.06, surrogate=model, square_queries=100
    )
    names = [(o.name, o.source) for o in judgement.outcomes]
    assert names == [
        ("clean", "none"),
        ("fgsm_transfer", "transfer"),
        ("pgd_transfer", "transfer"),
        ("square", "scores"),
    ]
    np.testing.assert_array_equal(judgement.robust, np.abs(np.array(LEVELS) - 0.5) > 0.06)


def test_slopes_of_the_parameters_alone_are_no_gradient_of_the_image():
    model = threshold_model()
    judgement = judge(
        lambda x: model(x.detach()), IMAGES, LABELS, epsilon=0.06, square_queries=5
    )  # fmt: skip
    assert [o.source for o in judgement.outcomes] == ["none", "scores"]


def test_robust_is_the_worst_over_transfer_and_square_for_each_image():
    # The surrogate finds nothing at all; Square alone moves images, and only it counts.
    useless = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    for parameter in useless.parameters():
        torch.nn.init.zeros_(parameter)
    judgement = judge(
        without_gradient(threshold_model()), IMAGES, LABELS, epsilon=0.06, surrogate=useless,
        attacks="fgsm", square_queries=300,
    )  # fmt: skip
    assert judgement.correct("fgsm_transfer").all()
    np.testing.assert_array_equal(judgement.robust, judgement.correct("square"))
    assert judgement.robust.sum() < len(LABELS)


def test_without_a_surrogate_square_is_all_there_is():
    judgement = judge(
        without_gradient(threshold_model()), IMAGES, LABELS, epsilon=0.06, attacks="standard",
        square_queries=50,
    )  # fmt: skip
    assert [o.name for o in judgement.outcomes] == ["clean", "square"]


def test_the_standard_attacks_agree_with_the_formula():
    judgement = judge(
        threshold_model(), IMAGES, LABELS, epsilon=0.06, attacks="standard", square_queries=20
    )
    robust = np.abs(np.array(LEVELS) - 0.5) > 0.06
    for name in ("cw_linf", "autoattack"):
        np.testing.assert_array_equal(judgement.correct(name), robust)
    # Four equal pixels must move by the margin each: twice the margin in l2.
    expected = 2 * np.abs(np.array(LEVELS) - 0.5)
    np.testing.assert_allclose(judgement.outcome("cw_l2").distances, expected, rtol=0.02)
    record = judgement.to_dict()["attacks"][-1]
    assert list(record["left_after"].values())[-1] == robust.sum()


def test_distances_are_summed_up_over_the_images_with_the_right_clean_answer():
    distances = np.array([0, 3, 0, 1, np.inf, 2, np.inf], np.float32)
    outcome = Outcome(
        attack="cw_l2", source="white_box", correct=distances > 0, distances=distances
    )
    assert outcome.distance_percentiles == {"p10": 1, "p50": 3, "p90": None}


def test_in_the_l2_ball_the_margin_is_twice_as_long():
    judgement = judge(
        threshold_model(), IMAGES, LABELS, epsilon=0.12, norm="l2", attacks="standard",
        square_queries=20,
    )  # fmt: skip
    robust = np.abs(np.array(LEVELS) - 0.5) > 0.06
    for name in ("apgd_ce", "cw_l2", "autoattack"):
        np.testing.assert_array_equal(judgement.correct(name), robust)


def test_examples_are_what_the_attack_made_and_what_the_model_said():
    model = threshold_model()
    examples = judge(model, IMAGES, LABELS, epsilon=0.06).outcome("pgd").examples
    assert sorted(e.index for e in examples) == [2, 3]
    for example in examples:
        change = np.abs(example.adversarial - IMAGES[example.index]).max()
        assert 0.02 < change <= 0.06 + 1e-6
        assert example.predicted == 1 - LABELS[example.index]
