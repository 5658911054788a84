"""The losses are the papers' formulas."""

import pytest
import torch

from server_toolkit.robust.attacks.losses import dlr, margins, targeted_dlr

LOGITS = torch.tensor([[5.0, 3.0, 2.0, -1.0, 0.5], [1.0, 4.0, 4.5, 0.0, 2.0]])
LABELS = torch.tensor([0, 1])


def test_margin_is_the_best_other_logit_minus_the_labels():
    torch.testing.assert_close(margins(LOGITS, LABELS), torch.tensor([-2.0, 0.5]))


def test_dlr_by_hand():
    # (3 - 5) / (5 - 2) and (4.5 - 4) / (4.5 - 2)
    torch.testing.assert_close(dlr(LOGITS, LABELS), torch.tensor([-2 / 3, 0.2]))


def test_targeted_dlr_by_hand():
    # (0.5 - 5) / (5 - (2 + 0.5) / 2) and (2 - 4) / (4.5 - (2 + 1) / 2)
    expected = torch.tensor([-4.5 / 3.75, -2 / 3])
    torch.testing.assert_close(targeted_dlr(LOGITS, LABELS, torch.tensor([4, 4])), expected)


def test_targeted_dlr_of_three_and_two_classes_by_hand():
    targets = torch.tensor([2, 2])
    expected = torch.tensor([-3 / 3, 0.5 / 3.5])  # over z_(1) - z_(3)
    torch.testing.assert_close(targeted_dlr(LOGITS[:, :3], LABELS, targets), expected)
    pair = targeted_dlr(LOGITS[:, :2], torch.tensor([0, 0]), torch.tensor([1, 1]))
    torch.testing.assert_close(pair, torch.tensor([-2.0, 3.0]))
    torch.testing.assert_close(dlr(LOGITS[:, :2], torch.tensor([0, 0])), pair)


@pytest.mark.parametrize("loss", [dlr, lambda z, y: targeted_dlr(z, y, 4 - y)])
def test_ratios_do_not_depend_on_shift_and_scale_of_the_logits(loss):
    torch.testing.assert_close(loss(7 * LOGITS + 3, LABELS), loss(LOGITS, LABELS))


def test_equal_logits_give_finite_ratios():
    equal = torch.ones(1, 5)
    label = torch.tensor([0])
    assert dlr(equal, label).isfinite().all()
    assert targeted_dlr(equal, label, label + 1).isfinite().all()
