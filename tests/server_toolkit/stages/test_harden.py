"""The settings that hardening takes from a run."""

import pytest

from server_toolkit.errors import ConfigError
from server_toolkit.stages.harden import HardenSettings, ensemble_rounds


@pytest.mark.parametrize(
    ("latest", "size", "share", "rounds"),
    [
        (12, 4, 0.5, [6, 8, 10, 12]),
        (12, 1, 0.5, [12]),
        (20, 3, 0.0, [0, 10, 20]),
        (3, 10, 0.5, [2, 3]),
        (0, 4, 0.5, [0]),
        (12, 3, 1.0, [12]),
    ],
)
def test_teachers_are_spread_over_the_end_of_the_path(latest, size, share, rounds):
    settings = HardenSettings(ensemble_size=size, ensemble_from=share)
    assert ensemble_rounds(latest, settings) == rounds


@pytest.mark.parametrize(
    "field", [dict(ensemble_size=0), dict(ensemble_from=1.5), dict(objective="other")]
)
def test_setting_out_of_range_is_named(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        HardenSettings(**field)
