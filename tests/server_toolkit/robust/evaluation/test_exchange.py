"""What fools one file of a model is shown to the others, and counts only where it fools them."""

import numpy as np
import pytest
import torch

from server_toolkit.robust.evaluation.assess import AssessSettings, assess
from server_toolkit.robust.evaluation.exchange import exchange
from server_toolkit.robust.evaluation.kept import KeptBatches
from tests.server_toolkit.robust.evaluation.networks import grey, threshold_model

LEVELS = np.linspace(0.02, 0.98, 24)
IMAGES, LABELS = grey(LEVELS), (LEVELS > 0.5).astype(np.int64)
MARGINS = np.abs(LEVELS - 0.5)
EPSILONS = (0.1, 0.2)
WEAK = dict(steps=1, square_queries=1)  # a step of a quarter of epsilon from a random start


def without_slope(model):
    """The same answers by outputs that carry no gradient, as an exported file gives them."""
    return lambda x: model(x).detach()


def found(model, attacks, *, images=IMAGES, labels=LABELS, steps=20, keeper=None, **more):
    settings = AssessSettings(epsilons=EPSILONS, attacks=attacks, batch_size=8, steps=steps, **more)
    return assess(model, images, labels, settings, collect=True, keeper=keeper)


def robust(assessment):
    return [judgement.robust for judgement in assessment.judgements]


@pytest.mark.parametrize("strong", ["torch", "onnx"])
def test_two_files_of_one_function_fall_to_what_fools_either(strong):
    torch_model, onnx = threshold_model(), without_slope(threshold_model())
    files = {
        "torch": (torch_model, found(torch_model, "pgd", **({} if strong == "torch" else WEAK))),
        "onnx": (
            onnx,
            found(onnx, "square", **({"square_queries": 200} if strong == "onnx" else WEAK)),
        ),
    }
    (weak,) = set(files) - {strong}
    exact = [epsilon < MARGINS for epsilon in EPSILONS]
    assert not np.array_equal(robust(files[weak][1]), exact)
    after = exchange(files, batch_size=8)
    for name in files:
        np.testing.assert_array_equal(robust(after[name]), exact)
    outcome = after[weak].judgements[0].outcome("exchanged_transfer")
    assert outcome.settings == {"from": [strong]}


def test_an_image_that_does_not_fool_the_other_file_takes_nothing_from_it():
    bright = LEVELS > 0.5
    model = threshold_model()
    other = without_slope(lambda x: model(x + 0.3))  # right on bright images however attacked
    only = dict(images=IMAGES[bright], labels=LABELS[bright])
    files = {
        "torch": (model, found(model, "pgd", **only)),
        "other": (other, found(other, "square", square_queries=5, **only)),
    }
    assert len(files["torch"][1].judgements[0].fooling.indices) > 1
    assert np.all(robust(exchange(files)["other"]))


def test_an_image_that_fools_is_inside_the_ball_and_known_once(tmp_path):
    keeper = KeptBatches(tmp_path, "a")
    model = threshold_model()
    images, labels = IMAGES[::2], LABELS[::2]
    options = dict(images=images, labels=labels, square_queries=20, keeper=keeper)
    first, again = (found(model, "fgsm,pgd,cw_l2,autoattack", **options) for _ in range(2))
    for one, other in zip(first.judgements, again.judgements, strict=True):
        fallen = np.flatnonzero(one.correct("clean") & ~one.robust)
        np.testing.assert_array_equal(np.sort(one.fooling.indices), fallen)
        moved = np.abs(one.fooling.images - images[one.fooling.indices])
        assert moved.max() <= one.epsilon + 1e-5
        answers = model(torch.from_numpy(one.fooling.images)).argmax(1).numpy()
        assert (answers != labels[one.fooling.indices]).all()
        np.testing.assert_array_equal(one.fooling.indices, other.fooling.indices)
        np.testing.assert_array_equal(one.fooling.images, other.fooling.images)


def test_gradients_that_miss_what_the_other_file_shows_are_doubted():
    model = threshold_model()

    def stuck(x):
        return model(2 * x.detach() - x)  # the slope points backwards

    onnx = without_slope(stuck)
    files = {
        "torch": (stuck, found(stuck, "pgd")),
        "onnx": (onnx, found(onnx, "square", square_queries=100)),
    }
    names = [flag.name for flag in files["torch"][1].flags]
    assert "transfer_beats_gradients" not in names
    after = exchange(files)["torch"]
    assert "transfer_beats_gradients" in [flag.name for flag in after.flags]
