import hashlib
import json

from edge_sdk.protocol.messages import Release, decode_message
from edge_sdk.protocol.signing import load_public_key, open_sealed
from tests.server_toolkit.commands.test_evaluate import EVALUATE, record_model


def opened(fleet, row) -> Release:
    key = load_public_key(fleet.directory / "keys" / "server.pub")
    manifest = decode_message(open_sealed(row.envelope, key), (Release,))
    assert isinstance(manifest, Release)
    return manifest


def test_a_release_is_signed_recorded_and_holds_the_files_that_were_evaluated(evaluated):
    evaluated.run("release", "--model", "fedavg")
    ledger = evaluated.ledger()
    manifest = opened(evaluated, ledger.latest_release())
    evaluation = json.loads((evaluated.directory / "evaluations" / "fedavg.json").read_text())
    for precision in ("fp32", "int8"):
        blob = getattr(manifest, precision).blob
        assert blob.sha256 == evaluation["files"][precision]["sha256"]
        on_disk = evaluated.directory / "releases" / "1" / f"model_{precision}.onnx"
        assert on_disk.read_bytes() == ledger.blobs.read(blob.sha256)
    assert hashlib.sha256(ledger.blobs.read(manifest.reference.sha256)).hexdigest()
    (int8,) = [
        s["accuracy"]
        for s in evaluation["scores"]
        if (s["predictor"], s["attack"]) == ("onnx_int8", "pgd")
    ]
    assert manifest.metrics["int8_pgd2@0.1"] == int8
    assert manifest.metrics["forced"] == 0.0
    assert manifest.metrics["onnx_max_abs_diff"] == evaluation["onnx_max_abs_diff"]


def test_versions_only_grow(evaluated):
    for _ in range(2):
        evaluated.run("release", "--model", "fedavg")
    versions = [opened(evaluated, row).version for row in evaluated.ledger().releases()]
    assert versions == [1, 2]


def test_a_model_without_an_evaluation_is_refused_unless_forced(fleet):
    assert "no evaluation named" in fleet.run("release", "--model", "fedavg", code=6)
    assert fleet.ledger().latest_release() is None
    assert "overridden" in fleet.run("release", "--model", "fedavg", "--force")
    manifest = opened(fleet, fleet.ledger().latest_release())
    assert manifest.metrics["forced"] == 1.0
    summary = json.loads((fleet.directory / "releases" / "1" / "release.json").read_text())
    assert "no evaluation named" in summary["overridden"]


def test_a_model_that_misses_the_gate_is_refused_with_what_it_misses(evaluated):
    evaluated.edit_config("min_robust_gain = -1.0", "min_robust_gain = 0.1")
    out = evaluated.run("release", "--model", "fedavg", code=6)
    assert "won over fedavg is 0.0 points, at least 10.0 are wanted (missed by 10.0)" in out


def test_an_evaluation_of_other_weights_does_not_count(fleet):
    ledger = fleet.ledger()
    record_model(ledger, "arm", ledger.global_weights(3))
    fleet.run(*EVALUATE, "--name", "arm", "--name", "fedavg")
    record_model(ledger, "arm", ledger.global_weights(2))
    assert "is of other files" in fleet.run("release", "--model", "arm", code=6)


def test_evaluations_on_different_images_are_not_compared(evaluated):
    ledger = evaluated.ledger()
    record_model(ledger, "arm", ledger.global_weights(3))
    evaluated.run(*EVALUATE, "--name", "arm", "--on", "server_set")
    assert "with another judged_on" in evaluated.run("release", "--model", "arm", code=6)


def test_a_missing_key_is_named(evaluated):
    (evaluated.directory / "keys" / "server.key").unlink()
    assert "server.key" in evaluated.run("release", "--model", "fedavg", code=2)
    assert evaluated.ledger().latest_release() is None
