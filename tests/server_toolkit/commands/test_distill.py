import json
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image

from server_toolkit.distill.proxy_set import ProxySet


def test_distill_writes_a_recorded_proxy_set_with_its_lineage(fleet):
    fleet.run("distill", "--name", "first", "--iterations", "3", "--threads", "1")
    row = fleet.ledger().artefact("proxy", "first")
    proxy = ProxySet.load(fleet.directory / row.path)
    assert proxy.images.shape == (20, 1, 16, 16)
    assert row.lineage["settings"]["iterations"] == 3
    assert row.lineage["server_set"] is None
    assert not list((fleet.directory / "proxy").glob("*.checkpoint"))


def test_distilling_the_same_again_keeps_the_file_and_other_settings_make_it_anew(fleet):
    command = ("distill", "--name", "first", "--threads", "1")
    fleet.run(*command, "--iterations", "2")
    path = fleet.directory / "proxy" / "first.safetensors"
    made = path.stat().st_mtime_ns
    assert "made already" in fleet.run(*command, "--iterations", "2")
    assert path.stat().st_mtime_ns == made
    fleet.run(*command, "--iterations", "3")
    assert path.stat().st_mtime_ns != made


def test_a_proxy_set_that_was_changed_on_disk_is_made_anew(fleet):
    command = ("distill", "--name", "first", "--threads", "1", "--iterations", "2")
    fleet.run(*command)
    path = fleet.directory / "proxy" / "first.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    fleet.run(*command)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_distillation_ends_with_the_bytes_of_an_undisturbed_one(fleet, how, code):
    options = ("--threads", "1", "--iterations", "60")
    fleet.run("distill", "--name", "whole", *options)
    process = fleet.start("distill", "--name", "cut", *options)
    deadline = time.monotonic() + 150
    while not list((fleet.directory / "proxy").glob("cut.*.checkpoint")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert not (fleet.directory / "proxy" / "cut.safetensors").exists()
    fleet.run("distill", "--name", "cut", *options)
    whole, cut = (
        ProxySet.load(fleet.directory / "proxy" / f"{n}.safetensors") for n in ("whole", "cut")
    )
    assert whole.images.tobytes() == cut.images.tobytes()
    assert whole.step_size == cut.step_size
    log = (fleet.directory / "proxy" / "cut.log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in log] == list(range(1, 61))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--name", "a/b"), 2, "cannot be a name"),
        (
            ("--name", "a", "--start", "dreams"),
            2,
            "noise, structured, shapes, textures",
        ),
        (("--name", "a", "--device", "abacus"), 2, "--device abacus cannot be used"),
    ],
)
def test_a_mistake_ends_in_one_message(fleet, arguments, code, message):
    assert message in fleet.run("distill", "--threads", "1", *arguments, code=code)


def test_a_start_from_the_server_set_without_one_says_what_to_do(fleet):
    fleet.edit_config('server_set = "server_set.npz"\n', "")
    out = fleet.run("distill", "--name", "a", "--start", "server_set", code=2)
    assert "[data] server_set" in out


def test_two_processes_make_what_one_makes_with_twice_the_segments(fleet):
    options = ("--iterations", "3", "--threads", "1", "--device", "cpu")
    fleet.run("distill", "--name", "one", "--segments", "4", *options)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])  # another run of the tests may have torchrun's own
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", port]
    command = ["-m", "server_toolkit", "distill", "--name", "two", "--segments", "2", *options]
    output = subprocess.run(
        [*torchrun, *command, "--config", str(fleet.config)],
        capture_output=True,
        check=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        timeout=120,
    )
    assert output.stdout.count("proxy set two") == 1
    one, two = (
        ProxySet.load(fleet.directory / "proxy" / f"{n}.safetensors") for n in ("one", "two")
    )
    assert one.images.tobytes() == two.images.tobytes()
    assert one.labels.tobytes() == two.labels.tobytes()
    assert one.metadata == two.metadata
    log = (fleet.directory / "proxy" / "two.log.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["segments"]) for line in log] == [4, 4, 4]


def test_pictures_are_written_at_intervals_and_at_the_end(fleet):
    fleet.run("distill", "--name", "a", "--iterations", "5", "--threads", "1", "--grid-every", "2")
    folder = fleet.directory / "proxy"
    assert sorted(p.name for p in (folder / "a.grid").iterdir()) == ["000002.png", "000004.png"]
    with Image.open(folder / "a.png") as picture:
        assert picture.format == "PNG"


def test_a_dry_run_shows_rounds_window_and_memory_and_makes_nothing(fleet):
    output = fleet.run("distill", "--name", "a", "--window", "early", "--dry-run")
    assert "* rounds 0 to 0: the first third" in output
    assert "segments: 1" in output
    assert re.search(r"memory on cpu: about \d+ MB needed, .* free", output)
    assert not (fleet.directory / "proxy" / "a.safetensors").exists()
    assert not (fleet.directory / "proxy" / "a.log.jsonl").exists()


def test_statistics_of_the_rounds_as_table_and_json(fleet):
    table = fleet.run("trajectories", "statistics")
    assert table.count("█") > 0
    found = json.loads(fleet.run("trajectories", "statistics", "--json"))
    assert [row["round"] for row in found["rounds"]] == [0, 1, 2]
    assert found["window"]["first"] <= found["window"]["last"]


def test_a_run_that_does_not_fit_is_refused_before_it_begins(fleet, monkeypatch):
    monkeypatch.setattr("server_toolkit.distill.memory.free_bytes", lambda _device: 10_000_000)
    output = fleet.run("distill", "--name", "a", "--threads", "1", code=5)
    assert re.search(r"needs about \d+ MB more memory, and 10 MB are free; choose", output)
    assert not (fleet.directory / "proxy" / "a.safetensors").exists()
