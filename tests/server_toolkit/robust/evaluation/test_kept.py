"""An interrupted evaluation carries on, and never from something else."""

import numpy as np
import pytest

from server_toolkit.robust.evaluation import judge
from server_toolkit.robust.evaluation.kept import KeptBatches
from tests.server_toolkit.robust.evaluation.networks import grey, threshold_model

IMAGES, LABELS = grey(np.linspace(0.05, 0.95, 12)), (np.arange(12) >= 6).astype(np.int64)
OPTIONS = dict(epsilon=0.1, batch_size=4)


class InterruptedEvaluationError(Exception):
    pass


class Counting:
    """A model that counts the images whose gradients were asked for."""

    def __init__(self):
        self.model, self.images = threshold_model(), 0

    def __call__(self, x):
        self.images += len(x) if x.requires_grad else 0
        return self.model(x)


def stop_after(batches):
    told = []

    def progress(done, total, text):
        told.append(done)
        if len(told) == batches:
            raise InterruptedEvaluationError

    return progress


def test_an_interrupted_evaluation_carries_on_to_the_same_result(tmp_path):
    whole = judge(threshold_model(), IMAGES, LABELS, **OPTIONS).to_dict()
    kept = KeptBatches(tmp_path, "a")
    with pytest.raises(InterruptedEvaluationError):
        judge(threshold_model(), IMAGES, LABELS, **OPTIONS, keeper=kept, progress=stop_after(4))
    counting = Counting()
    assert judge(counting, IMAGES, LABELS, **OPTIONS, keeper=kept).to_dict() == whole
    # FGSM and one batch of PGD were kept: two batches of 20 steps, one image to look for slopes.
    assert counting.images == 2 * 4 * 20 + 1


@pytest.mark.parametrize("change", [dict(seed=1), dict(epsilon=0.2), dict(steps=3)])
def test_what_was_kept_for_other_settings_is_not_used(tmp_path, change):
    kept = KeptBatches(tmp_path, "a")
    judge(threshold_model(), IMAGES, LABELS, attacks="pgd", **OPTIONS, keeper=kept)
    other = {**OPTIONS, **change}
    expected = judge(threshold_model(), IMAGES, LABELS, attacks="pgd", **other).to_dict()
    counting = Counting()
    found = judge(counting, IMAGES, LABELS, attacks="pgd", **other, keeper=kept).to_dict()
    assert found == expected
    assert counting.images > 1


def test_what_was_kept_for_another_model_is_not_used(tmp_path):
    KeptBatches(tmp_path, "a").store("key", {"correct": np.ones(3, bool)})
    assert KeptBatches(tmp_path, "a").load("key") is not None
    assert KeptBatches(tmp_path, "b").load("key") is None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    kept = KeptBatches(tmp_path, "a")
    kept.store("key", {"correct": np.ones(3, bool)})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-30] if damage is None else damage)
    assert kept.load("key") is None
