"""Child processes of the benchmark: clean ends, and errors in their own words."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_sdk.overhead import conversation, subject
from edge_sdk.overhead.child import run_background
from edge_sdk.overhead.onnx_model import onnx_bytes
from edge_sdk.overhead.processes import ArmError, Child
from tests.edge_sdk.conftest import convnet


def test_a_child_that_waits_on_its_leash_ends_cleanly(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(onnx_bytes(convnet(), subject.start_weights(convnet(), 0)))
    instructions = {"kind": "foreground", "model": str(model), "image_shape": [1, 16, 16],
                    "rate_hz": 100, "frames": 3}  # fmt: skip
    with Child(instructions, tmp_path, threads=1) as child:
        result = child.finish()
        assert child.process.returncode == 0
    assert len(result["latencies_s"]) == 3


def test_what_goes_wrong_in_a_child_is_told_in_its_own_words(tmp_path):
    wrong = {"kind": "foreground", "model": "nowhere.onnx"}
    with Child(wrong, tmp_path, threads=1) as child, pytest.raises(ArmError, match="nowhere"):
        child.finish()
    wrong = {"kind": "background", "config": str(tmp_path / "no.toml"), "server": {}}
    with Child(wrong, tmp_path, threads=1) as child, pytest.raises(ArmError, match=r"no\.toml"):
        child.wait_for_line()


def test_training_that_fails_beside_the_loop_is_an_error_not_silence(monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("broken")

    monkeypatch.setattr("edge_sdk.agent.local_training.train_round", broken)
    monkeypatch.setattr("edge_sdk.agent.config.load_config", lambda _: None)
    task = SimpleNamespace(
        program=SimpleNamespace(sha256="0" * 64), base=SimpleNamespace(sha256="0" * 64)
    )
    monkeypatch.setattr(conversation, "task_of", lambda _: (task, Path()))
    with pytest.raises(RuntimeError, match="broken"):
        run_background({"config": "x", "server": {}}, threading.Event())
