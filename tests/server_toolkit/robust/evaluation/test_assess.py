"""An assessment counts its work as one, and its curve agrees with its judgements."""

import numpy as np
import pytest

from server_toolkit.errors import ConfigError
from server_toolkit.robust.evaluation.assess import AssessSettings, assess, default_curve
from tests.server_toolkit.robust.evaluation.networks import grey, threshold_model

LEVELS = np.linspace(0.05, 0.95, 20)
IMAGES, LABELS = grey(LEVELS), (LEVELS > 0.5).astype(np.int64)


def test_progress_runs_through_all_attacks_and_sizes_once():
    seen = []
    settings = AssessSettings(epsilons=(0.1, 0.2), curve=(0.05, 0.3), batch_size=10)
    assess(threshold_model(), IMAGES, LABELS, settings, progress=lambda *step: seen.append(step))
    batches = len(LABELS) // 10
    passes = [*[3] * batches, *[41] * batches] * 2 + [41] * batches * 2  # fgsm, pgd; the curve
    assert [done for done, _, _ in seen] == np.cumsum(10 * np.array(passes)).tolist()
    assert {total for _, total, _ in seen} == {10 * sum(passes)}


def test_the_curve_is_what_pgd_leaves_at_each_size():
    settings = AssessSettings(epsilons=(0.12,), attacks="pgd", curve=(0.06, 0.12, 0.3))
    result = assess(threshold_model(), IMAGES, LABELS, settings)
    margins = np.abs(LEVELS - 0.5)
    assert list(result.curve) == [0.0, 0.06, 0.12, 0.3]
    for epsilon, mask in result.curve.items():
        np.testing.assert_array_equal(mask, margins > epsilon)
    np.testing.assert_array_equal(result.judgements[0].robust, result.curve[0.12])
    points = result.to_dict()["curve"]["points"]
    assert [p["accuracy"] for p in points] == [m.mean() for m in result.curve.values()]


def test_no_size_to_judge_at_is_an_error():
    with pytest.raises(ConfigError, match="at least one epsilon"):
        assess(threshold_model(), IMAGES, LABELS, AssessSettings(epsilons=()))


def test_the_default_curve_holds_the_judged_sizes_and_twice_the_largest():
    sizes = default_curve((2 / 255, 8 / 255))
    assert sizes == tuple(sorted(set(sizes)))
    assert {2 / 255, 8 / 255, 16 / 255} <= set(sizes)
    assert sizes[-1] == pytest.approx(16 / 255)
