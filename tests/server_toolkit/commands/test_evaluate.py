import hashlib
import json

import numpy as np

from edge_sdk.protocol.updates import encode_weights
from edge_sdk.training.sources import load_npz
from server_toolkit.ledger import Ledger
from server_toolkit.release.onnx_model import OnnxModel

EVALUATE = ("evaluate", "--threads", "1", "--device", "cpu")


def record_model(ledger: Ledger, name: str, weights, **lineage) -> None:
    path = ledger.directory / "models" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_weights(weights, ledger.layout))
    ledger.record_artefact("model", name, path, lineage)


def accuracy(evaluation, predictor, attack="clean"):
    (score,) = [
        s for s in evaluation["scores"] if (s["predictor"], s["attack"]) == (predictor, attack)
    ]
    return score["accuracy"]


def test_the_numbers_can_be_recomputed_from_the_saved_onnx_files(fleet):
    fleet.run(*EVALUATE, "--name", "fedavg", "--json", str(fleet.directory / "all.json"))
    evaluation = json.loads((fleet.directory / "evaluations" / "fedavg.json").read_text())
    test = load_npz(fleet.directory / "test.npz")
    for precision in ("fp32", "int8"):
        data = (fleet.directory / "models" / f"fedavg.{precision}.onnx").read_bytes()
        assert hashlib.sha256(data).hexdigest() == evaluation["files"][precision]["sha256"]
        correct = OnnxModel(data).logits(test.images).argmax(axis=1) == test.labels
        assert accuracy(evaluation, f"onnx_{precision}") == correct.mean()
    assert accuracy(evaluation, "torch") > 0.6
    assert accuracy(evaluation, "torch", "pgd") < accuracy(evaluation, "torch")
    assert evaluation["judged_on"]["kind"] == "test_set"
    assert evaluation["judged_on"]["warning"] is None
    assert json.loads((fleet.directory / "all.json").read_text())["evaluations"] == [evaluation]


def test_evaluating_the_same_again_computes_nothing(evaluated):
    fleet = evaluated
    before = (fleet.directory / "evaluations" / "fedavg.json").read_bytes()
    assert "evaluated already" in fleet.run(*EVALUATE, "--name", "fedavg")
    assert (fleet.directory / "evaluations" / "fedavg.json").read_bytes() == before
    fleet.edit_config("steps = 2\n[release]", "steps = 3\n[release]")
    fleet.run(*EVALUATE, "--name", "fedavg")
    assert (fleet.directory / "evaluations" / "fedavg.json").read_bytes() != before


def test_without_a_test_set_the_server_set_judges_and_the_output_says_so(fleet):
    (fleet.directory / "test.npz").unlink()
    out = fleet.run(*EVALUATE, "--name", "fedavg")
    assert "WARNING: no test set: judged on the server's own few images" in out
    judged_on = json.loads((fleet.directory / "evaluations" / "fedavg.json").read_text())[
        "judged_on"
    ]
    assert judged_on["kind"] == "server_set"
    assert judged_on["images"] == 100
    assert judged_on["warning"].startswith("no test set")


def test_a_model_that_saw_the_server_set_is_not_judged_on_it_unasked(fleet):
    (fleet.directory / "test.npz").unlink()
    fleet.run("distill", "--name", "seen", "--start", "server_set", "--iterations", "1")
    ledger = fleet.ledger()
    proxy = {"name": "seen", "sha256": ledger.artefact("proxy", "seen").sha256}
    record_model(ledger, "arm", ledger.global_weights(2), proxy=proxy)
    out = fleet.run(*EVALUATE, "--name", "arm", "--name", "fedavg")
    assert "say little about real ones" in out
    for name in ("arm", "fedavg"):
        path = fleet.directory / "evaluations" / f"{name}.json"
        assert json.loads(path.read_text())["judged_on"]["kind"] == "proxy"
    out = fleet.run(*EVALUATE, "--name", "arm", "--on", "server_set")
    assert "judged on images it was made with" in out


def test_with_nothing_to_judge_on_the_message_says_what_to_name(fleet):
    fleet.edit_config('server_set = "server_set.npz"\ntest_set = "test.npz"\n', "")
    assert "[data] test_set" in fleet.run(*EVALUATE, "--name", "fedavg", code=2)


def test_an_unknown_model_is_named(fleet):
    assert "no model named 'nobody'" in fleet.run(*EVALUATE, "--name", "nobody", code=3)


def test_a_model_file_with_a_flipped_byte_is_refused(fleet):
    ledger = fleet.ledger()
    record_model(ledger, "arm", ledger.global_weights(3))
    path = fleet.directory / "models" / "arm.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "not what the ledger recorded" in fleet.run(*EVALUATE, "--name", "arm", code=3)


def test_images_outside_of_the_unit_range_are_refused(fleet):
    np.savez(fleet.directory / "test.npz", images=np.full((4, 16, 16), 2.0), labels=np.arange(4))
    out = fleet.run(*EVALUATE, "--name", "fedavg", code=2)
    assert "test.npz" in out
    assert "[0, 1]" in out
