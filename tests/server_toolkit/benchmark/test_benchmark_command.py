"""The command as a user runs it, on the smallest preset."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from server_toolkit.cli import main

COMMAND = [sys.executable, "-m", "server_toolkit.cli", "benchmark", "robustness"]


def command(*options):
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    options = ["--preset", "tiny", "--seeds", "7", "--out", folder / "work", "--workers", "1"]
    files = ["--json", folder / "result.json", "--report", folder / "report.html"]
    done = command(*options, *files)
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads((folder / "result.json").read_text())


def test_every_arm_is_judged_and_compared(ran):
    _, _, result = ran
    assert result["format"] == "trajsyn-benchmark-robustness"
    assert result["complete"]
    assert not result["failures"]
    rows = {(row["arm"], row["server_images"]): row for row in result["rows"]}
    assert set(rows) == {
        ("fedavg", 0),
        ("client_at", 0),
        ("server_at_real", 0),
        ("noise_only", 0),
        ("trajsyn_noise", 0),
        ("server_set_only", 2),
        ("trajsyn_server_set", 2),
    }
    for row in rows.values():
        measures = row["measures"]
        assert measures["autoattack"]["mean"] <= measures["clean"]["pooled"]["high"]
        assert measures["pgd"]["mean"] <= measures["clean"]["mean"]
        for measure in measures.values():
            assert measure["worst_class"]["accuracy"] <= measure["pooled"]["accuracy"]
    pairs = {(entry["arm"], entry["control"]) for entry in result["comparisons"]}
    assert pairs == {("trajsyn_noise", "noise_only"), ("trajsyn_server_set", "server_set_only")}


def test_devices_work_more_only_for_adversarial_training_on_them(ran):
    rows = {row["arm"]: row["cost"] for row in ran[2]["rows"]}
    assert rows["client_at"]["relative_to_fedavg"]["passes"] == 3  # two attack steps and one more
    assert rows["trajsyn_server_set"]["relative_to_fedavg"]["passes"] == 1
    assert rows["trajsyn_server_set"]["server_s"] > rows["fedavg"]["server_s"] == 0


def test_goals_that_one_data_set_cannot_decide_are_called_undecided(ran):
    goals = ran[2]["goals"]
    assert [goal["status"] for goal in goals] == ["undecided"] * 3


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.text, self.pictures = [], "", 0

    def handle_starttag(self, tag, attrs):
        self.pictures += tag == "svg"
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_begins_with_the_warnings(ran):
    folder, _, result = ran
    page = Page()
    page.feed((folder / "report.html").read_text())
    assert page.pictures == 4
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    places = [page.text.index(text) for text in (*result["warnings"], "Goals: met or not")]
    assert places == sorted(places)
    for row in result["rows"]:
        assert row["title"] in page.text
    assert sum(source.startswith("data:image/png") for source in page.sources) == 3


def test_the_same_command_again_finds_all_done(ran, monkeypatch):
    folder, _, result = ran
    options = ["--preset", "tiny", "--seeds", "7", "--arms", "trajsyn_noise", "--workers", "1"]
    files = ["--out", str(folder / "work"), "--json", str(folder / "again.json")]
    before = {p: p.stat().st_mtime_ns for p in (folder / "work" / "pieces").glob("*.json")}
    monkeypatch.setattr(sys, "argv", ["x", "benchmark", "robustness", *options, *files])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "work" / "pieces").glob("*.json")}
    rows = json.loads((folder / "again.json").read_text())["rows"]
    first = {row["title"]: row["measures"] for row in result["rows"]}
    assert {row["title"] for row in rows} == {"fedavg", "noise_only", "trajsyn_noise"}
    assert all(first[row["title"]] == row["measures"] for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "huge"], "no preset is called 'huge'; choose small, paper, tiny"),
        (["--preset", "tiny", "--arms", "magic"], "no arm is called 'magic'"),
        (["--preset", "tiny", "--seeds", "one"], "--seeds: 'one' is no whole number"),
        (["--preset", "small"], "mnist is read from files; say in which directory they are"),
    ],
)
def test_mistakes_end_in_a_sentence(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["x", "benchmark", "robustness", *options, "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
