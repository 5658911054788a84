"""Tone curves give a set of images the mean and deviation that it shall have."""

import numpy as np
import pytest

from server_toolkit.distill.tones import in_tones_of, match_tones


def images(seed, count=40, channels=2):
    return np.random.default_rng(seed).random((count, channels, 8, 8), np.float32)


def test_the_curve_of_two_tones_is_found_by_hand():
    # Half of the pixels 0.25 and half 0.75; mean 0.5 and deviation 0.4 need 0.1 and 0.9.
    given = np.where(np.arange(64).reshape(1, 1, 8, 8) % 2, 0.25, 0.75).astype(np.float32)
    toned = match_tones(given, mean=(0.5,), std=(0.4,))
    assert toned[given == 0.25] == pytest.approx(0.1, abs=1e-5)
    assert toned[given == 0.75] == pytest.approx(0.9, abs=1e-5)


def test_greyed_images_get_their_blacks_back_channel_by_channel():
    black = (images(0) > 0.8).astype(np.float32)
    black[:, 1] *= 0.5
    greyed = 0.3 + 0.4 * black + 0.05 * images(1)
    toned = in_tones_of(black, greyed)
    for channel in range(2):
        assert toned[:, channel].mean() == pytest.approx(black[:, channel].mean(), abs=2e-3)
        assert toned[:, channel].std() == pytest.approx(black[:, channel].std(), abs=2e-3)
    assert (greyed == 0).mean() == 0
    assert (toned[:, 0] == 0).mean() > 0.3


def test_images_that_have_the_tones_stay_as_they_are():
    given = images(2)
    assert np.abs(in_tones_of(given, given) - given).max() < 1e-3
