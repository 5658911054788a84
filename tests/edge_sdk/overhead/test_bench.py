"""The command as a user meets it, on a small network, with real agents in real processes."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_sdk import cli
from edge_sdk.errors import ConfigError
from edge_sdk.mqtt import BrokerSettings
from edge_sdk.overhead import session as session_module
from edge_sdk.overhead import subject
from edge_sdk.overhead.broker import find_mosquitto, loopback_broker
from edge_sdk.overhead.conversation import check_broker
from edge_sdk.overhead.report import report_html, show
from edge_sdk.protocol import topics
from edge_sdk.runtime import ProgramFile
from tests.edge_sdk.conftest import convnet

ALL_ARMS = ("federated", "trajsyn", "pgd7", "pgd10", "dp_sgd")
SHORT = ("--steps", "3", "--repeats", "1", "--batch", "8", "--tax", "0.3", "--idle", "0.3")

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="session")
def programs(runtime, tmp_path_factory):
    """Training, attack and micro-batch-1 programs of a ConvNet of width 8 at 1x16x16."""
    directory = tmp_path_factory.mktemp("programs")
    made = subject.exported(convnet(), directory, ("training", "attack", "private"))
    return [str(path) for path, _ in made.files.values()]


def bench(tmp_path, *arguments):
    """Run the command in this process; return its exit code and what it wrote."""
    file, page = tmp_path / "bench.json", tmp_path / "bench.html"
    words = ["bench", *map(str, arguments), "--json", str(file), "--report", str(page)]
    code = cli.main(words)
    document = json.loads(file.read_text()) if file.exists() else None
    return code, document, page.read_text() if page.exists() else None


@pytest.fixture(scope="session")
def whole(programs, tmp_path_factory):
    """One run of everything, with a scripted meter, over a real broker where there is one."""
    directory = tmp_path_factory.mktemp("whole")
    meter = directory / "meter.py"
    meter.write_text(
        "import time\nwhile True:\n"
        '    print(\'{"t_s": %f, "power_w": 3.0}\' % time.monotonic(), flush=True)\n'
        "    time.sleep(0.005)\n"
    )
    command = f"{sys.executable} {meter}"
    code, document, page = bench(
        directory, *SHORT, "--program", *programs, "--meter-command", command
    )
    assert code == 0
    return document, page


def values(tree, path=""):
    if isinstance(tree, dict):
        if "kind" in tree:
            yield path, tree
        else:
            for name, item in tree.items():
                yield from values(item, f"{path}.{name}")


def test_every_number_is_a_value_with_unit_kind_and_source(whole):
    document, _ = whole
    own = ("options", "series", "format", "complete", "interrupted", "made_at", "failures")
    rest = {k: v for k, v in document.items() if k not in own}

    def check(tree, path):
        if isinstance(tree, dict) and "kind" in tree:
            assert {"value", "unit", "kind", "source"} <= set(tree), path
            assert tree["kind"] in ("measured", "derived", "estimated", "absent"), path
            assert tree["source"], path
            assert (tree["value"] is None) == (tree["kind"] == "absent"), path
            assert tree["kind"] != "absent" or tree["reason"], path
        elif isinstance(tree, dict):
            for name, item in tree.items():
                check(item, f"{path}.{name}")
        else:
            assert isinstance(tree, str), f"{path} is a bare {tree!r}"

    check(rest, "")
    assert len(list(values(rest))) > 150


def test_every_arm_has_its_phases(whole):
    document, _ = whole
    assert document["complete"]
    assert tuple(document["arms"]) == ALL_ARMS
    for name, tree in document["arms"].items():
        phases = {"fetch", "load", "forward_backward", "optimiser", "encode", "store", "publish"}
        phases |= {"attack"} if name.startswith("pgd") else set()
        phases |= {"noise"} if name == "dp_sgd" else set()
        assert set(tree["phases"]) == phases
        for phase in phases - {"publish"}:
            for field in ("time_median", "time_p95", "cpu_median", "peak_rss"):
                assert tree["phases"][phase][field]["kind"] == "measured", (name, phase, field)
        step = tree["step"]["time_median"]["value"]
        assert 0 < tree["phases"]["forward_backward"]["time_median"]["value"] <= step
        assert tree["round"]["time_median"]["value"] > 2 * step
        assert tree["process"]["peak_rss"]["value"] > 20e6


def test_uploads_with_trajsyn_are_the_same_bytes_and_a_release_was_installed_between(whole):
    document, _ = whole
    assert document["uploads"]["identical"]["value"] is True
    assert len(document["uploads"]["rounds"]) == 2
    hashes = [row["trajsyn"]["value"] for row in document["uploads"]["rounds"].values()]
    assert len(set(hashes)) == 2  # the rounds differ from each other
    release = document["arms"]["trajsyn"]["release"]["whole"]
    assert release["verdict"]["value"] == "running"
    assert release["bytes_down"]["value"] > 1000
    assert "release" not in document["arms"]["federated"]
    sent = document["arms"]["trajsyn"]["against_federated"]["bytes_up"]["value"]
    assert sent == pytest.approx(1, rel=0.02)  # the release's own messages are counted apart


def test_adversarial_training_runs_the_attack_program_as_often_as_it_says(whole):
    document, _ = whole
    cpu = {
        name: document["arms"][name]["phases"]["attack"]["cpu_median"]["value"]
        for name in ("pgd7", "pgd10")
    }
    assert 1.05 < cpu["pgd10"] / cpu["pgd7"] < 2.2  # 10/7, and what both do once


def test_a_constant_meter_gives_no_energy_above_idle(whole):
    document, _ = whole
    assert document["power"]["idle"]["value"] == pytest.approx(3.0)
    energy = document["arms"]["pgd10"]["round"]["energy"]
    assert energy["kind"] == "derived"
    assert energy["value"] == pytest.approx(0, abs=1e-6)


def test_the_page_needs_no_network_and_has_pictures_and_everything_absent(whole):
    document, page = whole
    assert not re.search(r"(?:src|href)=|https?://(?!www\.w3\.org)|@import|url\(", page)
    assert page.count("<svg") >= 4
    for _, value in values(document):
        if value.get("kind") == "absent":
            assert page.count(value["reason"][:30].replace("'", "&#x27;")) >= 1
    for path, _ in values({k: document[k] for k in ("arms", "tax", "power")}):
        assert f"<code>{path.removeprefix('.')}</code>" in page


def test_the_budgets_of_the_training_tax_are_all_there(whole):
    document, _ = whole
    assert set(document["tax"]) == {"none", "default", "everything", "half"}
    for name, row in document["tax"].items():
        assert row["latency_p99"]["value"] > 0
        assert (row["steps_per_s"]["value"] is None) == (name == "none")


def test_a_client_that_does_other_work_under_trajsyn_is_found_out(
    programs, tmp_path, monkeypatch, capsys
):
    honest = session_module.arms

    def dishonest(**options):
        made = honest(**options)
        trajsyn, attack = made["trajsyn"], made["pgd7"].training
        return made | {"trajsyn": dataclasses.replace(trajsyn, training=attack)}

    monkeypatch.setattr(session_module, "arms", dishonest)
    code, document, page = bench(
        tmp_path, *SHORT, "--program", *programs, "--arms", "federated", "trajsyn", "--no-tax",
        "--no-broker", "--rounds", "1",
    )  # fmt: skip
    assert code == 1
    assert document["uploads"]["identical"]["value"] is False
    assert "different" in page
    captured = capsys.readouterr()
    assert "DIFFERENT" in captured.out
    assert "differ" in captured.err


def test_with_only_a_training_program_the_other_arms_say_what_they_need(
    programs, tmp_path, monkeypatch
):
    monkeypatch.setattr(subject, "can_export", lambda: False)
    training = next(p for p in programs if p.endswith("training.tsp"))
    code, document, page = bench(
        tmp_path, *SHORT, "--program", training, "--no-tax", "--no-broker", "--rounds", "1"
    )
    assert code == 0
    for name in ("pgd7", "pgd10", "dp_sgd"):
        gone = document["arms"][name]["absent"]
        assert gone["kind"] == "absent"
        assert "--save-programs" in gone["remedy"]
    assert document["arms"]["federated"]["phases"]["publish"]["time_median"]["kind"] == "absent"
    assert "mosquitto" in page


def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_behind(programs, tmp_path):
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "edge_sdk.cli", "bench", "--steps", "20", "--tax", "5",
               "--program", *programs, "--json", str(file)]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert "preparing" in process.stderr.readline()
        assert "federated client alone" in process.stderr.readline()  # the first arm is done
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    document = json.loads(file.read_text())
    assert (document["complete"], document["interrupted"]) == (False, True)
    assert document["arms"]["federated"]["step"]["time_median"]["value"] > 0
    assert "not reached" in document["arms"]["dp_sgd"]["absent"]["reason"]
    assert not list(tmp_path.glob("edge-sdk-bench*"))
    assert not _processes_of(tmp_path)


def _processes_of(directory):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(directory).encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "1"], ["--steps", "2"]),
        (["--rate", "nan"], ["--rate"]),
        (["--broker", "nowhere"], ["--broker", "HOST:PORT"]),
        (["--broker", "h:1", "--no-broker"], ["exclude"]),
        (["--program", "no.tsp"], ["no.tsp"]),
        (["--program", __file__], ["test_bench.py", "not a program file"]),
        (["--config", "no.toml"], ["no.toml"]),
        (["--channels", "0"], ["channels"]),
        (["--json", "/nowhere/at/all.json"], ["/nowhere/at/all.json", "cannot be written"]),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(arguments, words, capsys):
    assert cli.main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert "Traceback" not in said


def test_a_meter_that_does_not_start_is_told_before_anything_is_measured(programs, capsys):
    code = cli.main(["bench", "--program", *programs, "--meter-command", "no-such-meter"])
    assert code == 2
    assert "no-such-meter" in capsys.readouterr().err


def test_a_program_that_the_library_refuses_is_told_once_before_the_arms(
    programs, tmp_path, capsys
):
    training = ProgramFile.load(next(p for p in programs if p.endswith("training.tsp")))
    dataclasses.replace(training, pte=bytes(1000)).save(tmp_path / "damaged.tsp")
    assert (
        cli.main(["bench", "--program", str(tmp_path / "damaged.tsp"), "--arms", "federated"]) == 5
    )
    said = capsys.readouterr().err
    assert "[1/" not in said
    assert "Traceback" not in said


def test_without_torch_and_program_the_user_is_told_three_ways(monkeypatch, capsys):
    monkeypatch.setattr(subject, "can_export", lambda: False)
    assert cli.main(["bench"]) == 2
    said = capsys.readouterr().err
    for word in ("--config", "--save-programs", "--program", "pip install"):
        assert word in said


def test_the_device_path_loads_no_torch():
    code = (
        "import sys, edge_sdk.overhead.bench, edge_sdk.overhead.child, edge_sdk.overhead.report, "
        "edge_sdk.commands.bench\n"
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    forbidden = {"torch", "executorch", "onnx", "matplotlib", "server_toolkit", "sklearn"}
    assert not set(done.stdout.split()) & forbidden


@needs_mosquitto
def test_a_broker_on_which_a_fleet_lives_is_left_alone(tmp_path):
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    with loopback_broker(find_mosquitto(), tmp_path) as broker:
        check_broker(broker)
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.publish(topics.TASK, b"a task", qos=1, retain=True).wait_for_publish(5)
        client.disconnect()
        client.loop_stop()
        with pytest.raises(ConfigError, match="fleet"):
            check_broker(broker)


def test_a_broker_out_of_reach_is_the_user_s_to_correct():
    with pytest.raises(ConfigError, match="cannot"):
        check_broker(BrokerSettings(host="127.0.0.1", port=1))


def test_an_enrolled_device_is_measured_with_its_own_program_images_and_model(
    programs, tmp_path, small_dataset
):
    directory = tmp_path / "cam"
    subprocess.run(
        [sys.executable, "-c", "from pathlib import Path; from edge_sdk.protocol.signing import "
         f"create_key; create_key(Path({str(tmp_path / 'server.key')!r}))"], check=True,
    )  # fmt: skip
    np.savez(tmp_path / "own.npz", images=small_dataset.images, labels=small_dataset.labels)
    options = ["--device", "cam-01", "--server-key", str(tmp_path / "server.pub")]
    data = str(tmp_path / "own.npz")
    assert cli.main(["init", str(directory), *options, "--data", data]) == 0
    config = str(directory / "device.toml")
    assert cli.main(["bench", "--config", config]) == 2  # no task yet
    fetched = directory / "state" / "fetched"
    fetched.mkdir(parents=True)
    training = next(p for p in programs if p.endswith("training.tsp"))
    shutil.copy(training, fetched / ("0" * 64))
    code, document, _ = bench(
        tmp_path, *SHORT, "--config", config, "--no-broker", "--no-tax", "--rounds", "1",
        "--arms", "federated", "dp_sgd", "--program", *programs,
    )  # fmt: skip
    assert code == 0
    assert document["arms"]["dp_sgd"]["step"]["time_median"]["value"] > 0
    assert "fetched" in document["subject"]["program"]["value"]
    assert "24 images of [data]" in document["subject"]["images"]["value"]


# The page's own parts


def test_texts_from_outside_cannot_become_markup(whole):
    document, _ = whole
    hostile = json.loads(json.dumps(document))
    hostile["machine"]["model"] = {
        "value": "<script>alert(1)</script>", "unit": "text", "kind": "measured", "source": "<b>x"
    }  # fmt: skip
    hostile["failures"] = ["<img onerror=x>"]
    page = report_html(hostile)
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>x" not in page


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"), (1.5, "s", "1.50 s"), (2e-6, "s", "2 µs"), (0.0, "s", "0 µs"),
        (281234, "B", "281 kB"), (2, "1", "2"), (0.0005, "J", "0.500 mJ"), (True, "bool", "yes"),
        (-0.02, "J", "-20 mJ"),
    ],
)  # fmt: skip
def test_values_are_shown_with_a_fitting_unit(value, unit, text):
    assert show({"value": value, "unit": unit, "kind": "measured", "source": "x"}) == text


# What is measured


def test_images_are_drawn_again_where_there_are_too_few(tmp_path, small_dataset):
    path = tmp_path / "few.npz"
    np.savez(path, images=small_dataset.images, labels=small_dataset.labels)
    found = subject.images_from(str(path), convnet(), 100, seed=0)
    assert len(found.dataset) == 100
    assert "only 40, repeated" in found.source
    again = subject.images_from(str(path), convnet(), 100, seed=0)
    assert (found.dataset.images == again.dataset.images).all()


def test_programs_are_sorted_by_what_they_are(programs):
    paths = {Path(p).stem: Path(p) for p in programs}
    found = subject.from_files([paths["training"], paths["private"]])
    assert set(found.files) == {"training", "private"}
    assert set(found.why_not) == {"attack"}
    with pytest.raises(ConfigError, match="training program"):
        subject.from_files([paths["attack"]])
