import signal
import time

import pytest

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


def test_an_interrupted_distillation_ends_with_the_bytes_of_an_undisturbed_one(fleet):
    options = ("--threads", "1", "--iterations", "60")
    fleet.run("distill", "--name", "whole", *options)
    process = fleet.start("distill", "--name", "cut", *options)
    deadline = time.monotonic() + 150
    while not list((fleet.directory / "proxy").glob("cut.*.checkpoint")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not (fleet.directory / "proxy" / "cut.safetensors").exists()
    fleet.run("distill", "--name", "cut", *options)
    whole, cut = (
        ProxySet.load(fleet.directory / "proxy" / f"{n}.safetensors") for n in ("whole", "cut")
    )
    assert whole.images.tobytes() == cut.images.tobytes()
    assert whole.step_size == cut.step_size


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--name", "a/b"), 2, "cannot be a name"),
        (("--name", "a", "--start", "dreams"), 2, "noise, structured, server_set"),
        (("--name", "a", "--device", "abacus"), 2, "--device abacus cannot be used"),
    ],
)
def test_a_mistake_ends_in_one_message(fleet, arguments, code, message):
    assert message in fleet.run("distill", "--threads", "1", *arguments, code=code)


def test_a_start_from_the_server_set_without_one_says_what_to_do(fleet):
    fleet.edit_config('server_set = "server_set.npz"\n', "")
    out = fleet.run("distill", "--name", "a", "--start", "server_set", code=2)
    assert "[data] server_set" in out
