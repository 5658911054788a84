"""The settings that hardening takes from a run."""

import json
from pathlib import Path

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


def test_the_page_names_every_setting_with_its_default():
    page = Path(__file__).parents[3] / "docs" / "hardening.md"
    section = page.read_text(encoding="utf-8").split("## Every field")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    told = {}
    for names, values in rows:
        fields = [name.strip(" `") for name in names.split(", ")]
        texts = [value.strip() for value in values.split(", ")]
        told |= dict(zip(fields, texts, strict=True))
    assert told == {name: as_written(value) for name, value in HardenSettings().to_dict().items()}


def as_written(value):
    if value is None:
        return "not set"
    return f'`"{value}"`' if isinstance(value, str) else json.dumps(value)
