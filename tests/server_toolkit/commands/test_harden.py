import json
import signal
import time

import numpy as np
import pytest

from edge_sdk.protocol.updates import decode_weights

ONE = ("--threads", "1", "--device", "cpu")


@pytest.fixture
def distilled(fleet):
    fleet.run("distill", "--name", "synthetic", "--iterations", "1", *ONE)
    return fleet


def weights(fleet, name):
    ledger = fleet.ledger()
    row = ledger.artefact("model", name)
    return decode_weights((fleet.directory / row.path).read_bytes(), ledger.layout)


def test_harden_starts_from_the_newest_federated_model_and_records_its_lineage(distilled):
    distilled.run("harden", "--name", "arm", "--proxy", "synthetic", *ONE)
    ledger = distilled.ledger()
    lineage = ledger.artefact("model", "arm").lineage
    assert lineage["start"] == ledger.weights_blob(3).sha256
    assert lineage["proxy"]["sha256"] == ledger.artefact("proxy", "synthetic").sha256
    assert lineage["images"] is None
    moved = np.abs(weights(distilled, "arm") - ledger.global_weights(3)).max()
    assert 0 < moved < 1


def test_the_control_trains_on_real_images_alone(fleet):
    fleet.run("harden", "--name", "control", "--images", f"{fleet.directory}/server_set.npz", *ONE)
    lineage = fleet.ledger().artefact("model", "control").lineage
    assert lineage["proxy"] is None
    assert len(lineage["images"]) == 64


@pytest.mark.parametrize("source", ["hard", "learned", "teacher", "ensemble"])
def test_a_proxy_set_mixes_with_the_server_set_under_every_kind_of_label(distilled, source):
    distilled.edit_config("[harden]\n", f'[harden]\nlabel_source = "{source}"\n')
    distilled.run("harden", "--name", "pure", "--proxy", "synthetic", *ONE)
    mixed = ("harden", "--name", "mixed", "--proxy", "synthetic", "--with-server-set")
    distilled.run(*mixed, *ONE)
    assert not np.array_equal(weights(distilled, "pure"), weights(distilled, "mixed"))


def test_real_images_share_in_every_batch_is_a_setting(distilled):
    mixed = ("--proxy", "synthetic", "--with-server-set", *ONE)
    distilled.run("harden", "--name", "repeated", *mixed)
    distilled.edit_config("[harden]\n", "[harden]\nreal_share = 0.25\n")
    distilled.run("harden", "--name", "shared", *mixed)
    assert not np.array_equal(weights(distilled, "repeated"), weights(distilled, "shared"))


def test_an_ensemble_is_the_fleets_path_and_part_of_the_lineage(distilled):
    settings = 'label_source = "ensemble"\nensemble_size = 2\nensemble_from = 0.3\n'
    distilled.edit_config("[harden]\n", f"[harden]\n{settings}")
    distilled.run("harden", "--name", "taught", "--proxy", "synthetic", *ONE)
    ledger = distilled.ledger()
    lineage = ledger.artefact("model", "taught").lineage
    assert lineage["teachers"] == [ledger.aggregate_blob(number).sha256 for number in (1, 3)]


def test_the_log_has_a_line_for_every_step(distilled):
    settings = 'objective = "trades"\nholdout_share = 0.2\nholdout_every = 5\n'
    distilled.edit_config("[harden]\n", f"[harden]\n{settings}")
    log = distilled.directory / "models" / "arm.log.jsonl"
    said = distilled.run("harden", "--name", "arm", "--proxy", "synthetic", *ONE)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    measured = {line["step"]: line["held_out_accuracy"] for line in lines}
    assert [step for step, accuracy in measured.items() if accuracy is not None] == [5, 10, 15, 20]
    best = max(measured[step] for step in (5, 10, 15, 20))
    assert any(f"step {s} were the best" in said for s in (5, 10, 15, 20) if measured[s] == best)


def test_hardening_the_same_again_does_nothing(distilled):
    command = ("harden", "--name", "arm", "--proxy", "synthetic", *ONE)
    distilled.run(*command)
    assert "made already" in distilled.run(*command)


def test_an_interrupted_hardening_ends_with_the_bytes_of_an_undisturbed_one(distilled):
    distilled.edit_config("[harden]\nsteps = 20", "[harden]\nsteps = 80")
    options = ("--proxy", "synthetic", *ONE)
    process = distilled.start("harden", "--name", "cut", *options)
    deadline = time.monotonic() + 150
    while not list(distilled.directory.glob("models/cut.*.checkpoint")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not (distilled.directory / "models" / "cut.safetensors").exists()
    for name in ("cut", "whole"):
        distilled.run("harden", "--name", name, *options)
    assert weights(distilled, "cut").tobytes() == weights(distilled, "whole").tobytes()
    assert not list(distilled.directory.glob("models/*.checkpoint"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--name", "fedavg", "--proxy", "synthetic"), 2, "is the undefended model"),
        (("--name", "arm"), 2, "nothing to harden on"),
        (("--name", "arm", "--proxy", "nothing"), 3, "no proxy named 'nothing'"),
        (("--name", "arm", "--images", "missing.npz"), 2, "missing.npz"),
    ],
)
def test_a_mistake_ends_in_one_message(fleet, arguments, code, message):
    assert message in fleet.run("harden", *ONE, *arguments, code=code)
