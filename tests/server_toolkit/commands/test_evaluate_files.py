"""`evaluate` on model files and with chosen attacks."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from edge_sdk.protocol.updates import encode_weights
from models import layout_of
from models.description import to_toml
from models.networks import build_model, flat_parameters
from tests.server_toolkit.commands.conftest import SPEC, Fleet

EVALUATE = ("evaluate", "--threads", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def files(evaluated_run, tmp_path) -> Fleet:
    """A folder that is no fleet directory: one model as weights and ONNX, and images."""
    folder = tmp_path / "files"
    folder.mkdir()
    ledger = Fleet(evaluated_run).ledger()
    weights = encode_weights(ledger.global_weights(3), ledger.layout)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "model.toml").write_text(to_toml(SPEC))
    for precision in ("fp32", "int8"):
        shutil.copy(evaluated_run / "models" / f"fedavg.{precision}.onnx", folder)
    with np.load(evaluated_run / "test.npz") as test:
        np.savez(folder / "test.npz", images=test["images"][:60], labels=test["labels"][:60])
    return Fleet(folder)


def of(files, *names):
    return [str(files.directory / name) for name in names]


def run_files(files, *arguments, code=0):
    images = of(files, "test.npz")[0]
    return files.run(*EVALUATE, "--images", images, "--epsilon", "0.1", *arguments, code=code)


def result_of(files):
    return json.loads((files.directory / "out.json").read_text())


def test_a_weights_file_is_judged_without_a_fleet_directory(files):
    model, out, page = of(files, "model.safetensors", "out.json", "page.html")
    shown = run_files(files, model, "--json", out, "--report", page, "--curve", "0.05,0.1")
    result = result_of(files)
    assert (result["format"], result["version"]) == ("trajsyn-evaluation", 1)
    (judged,) = result["models"]
    assert (judged["name"], judged["kind"], judged["attacked"]) == ("model", "torch", "white_box")
    (judgement,) = judged["judgements"]
    assert [a["name"] for a in judgement["attacks"]] == ["clean", "fgsm", "pgd"]
    assert len(judgement["robust"]["correct_images"]) == 60
    assert [p["epsilon"] for p in judged["curve"]["points"]] == [0, 0.05, 0.1]
    assert "few_images" in [flag["name"] for flag in judged["flags"]]
    assert "CAUTION few_images" in shown
    text = (files.directory / "page.html").read_text()
    assert "few_images" in text
    assert 'src="http' not in text
    assert 'href="http' not in text


def test_onnx_files_are_attacked_by_transfer_and_square_and_it_says_so(files):
    model, int8, out = of(files, "model.safetensors", "fedavg.int8.onnx", "out.json")
    shown = run_files(files, int8, "--transfer-from", model, "--count", "12", "--json", out)
    (judged,) = result_of(files)["models"]
    assert (judged["kind"], judged["attacked"]) == ("onnx_int8", "transfer")
    assert judged["surrogate"]["name"] == "model"
    attacks = judged["judgements"][0]["attacks"]
    assert {a["name"] for a in attacks} == {"clean", "fgsm_transfer", "pgd_transfer", "square"}
    assert attacks[-1]["settings"] == {"square_queries": 5000}
    robust = judged["judgements"][0]["robust"]["correct_images"]
    masks = [a["correct_images"] for a in attacks]
    assert robust == "".join(
        "1" if set(digits) == {"1"} else "0" for digits in zip(*masks, strict=True)
    )
    assert "they are upper bounds" in shown


def test_an_onnx_file_alone_is_attacked_by_square_and_it_says_so(files):
    (fp32,) = of(files, "fedavg.fp32.onnx")
    shown = run_files(files, fp32, "--count", "8")
    assert "only Square attacked" in shown
    assert "a loose one" in shown


def test_a_fleets_onnx_file_finds_the_torch_model_it_was_made_of(evaluated):
    out = evaluated.directory / "out.json"
    file = evaluated.directory / "models" / "fedavg.int8.onnx"
    arguments = ("--count", "8", "--epsilon", "0.1", "--json", str(out))
    evaluated.run(*EVALUATE, str(file), *arguments)
    (judged,) = json.loads(out.read_text())["models"]
    assert judged["surrogate"]["name"] == "fedavg"
    shutil.copy(file, file.with_name("other.int8.onnx"))  # there is no model "other"
    shown = evaluated.run(*EVALUATE, str(file.with_name("other.int8.onnx")), *arguments)
    assert "cannot be read" in shown
    (judged,) = json.loads(out.read_text())["models"]
    assert (judged["surrogate"], judged["attacked"]) == (None, "scores")


def test_a_fleet_name_stands_for_its_three_files_and_the_record_is_left_alone(evaluated):
    record = (evaluated.directory / "evaluations" / "fedavg.json").read_bytes()
    out = evaluated.directory / "out.json"
    shown = evaluated.run(
        *EVALUATE, "fedavg", "--attacks", "fgsm", "--count", "8", "--json", str(out)
    )
    models = json.loads(out.read_text())["models"]
    assert [m["kind"] for m in models] == ["torch", "onnx_fp32", "onnx_int8"]
    assert "fedavg (onnx int8)" in shown
    robust = [model["judgements"][0]["robust"]["correct_images"] for model in models]
    assert robust[0] == robust[1]  # the same function, so what fools one was tried on the other
    for model in models:
        (exchanged,) = [
            a for a in model["judgements"][0]["attacks"] if a["name"] == "exchanged_transfer"
        ]
        assert len(exchanged["settings"]["from"]) == 2
    assert (evaluated.directory / "evaluations" / "fedavg.json").read_bytes() == record


def test_finished_attacks_are_kept_and_not_run_again(files):
    model, out = of(files, "model.safetensors", "out.json")
    keep = files.directory / "kept"
    run_files(files, model, "--keep", str(keep), "--json", out)
    first, before = result_of(files), {p: p.stat().st_mtime_ns for p in keep.iterdir()}
    assert len(before) == 2  # a batch of FGSM and one of PGD
    run_files(files, model, "--keep", str(keep), "--json", out)
    assert {p: p.stat().st_mtime_ns for p in keep.iterdir()} == before
    again = result_of(files)
    assert {**again, "created_at_s": 0} == {**first, "created_at_s": 0}


def test_the_same_weights_in_another_network_are_judged_anew(files):
    model, out = of(files, "model.safetensors", "out.json")
    keep = files.directory / "kept"
    clean = []
    for mean in (0.3, 0.9):
        spec = dataclasses.replace(SPEC, mean=(mean,))
        (files.directory / "model.toml").write_text(to_toml(spec))
        run_files(files, model, "--attacks", "fgsm", "--keep", str(keep), "--json", out)
        clean.append(result_of(files)["models"][0]["judgements"][0]["attacks"][0]["correct"])
    assert clean[0] != clean[1]
    assert len(list(keep.iterdir())) == 2


def test_files_of_one_name_are_told_apart_by_their_paths(files):
    model, out = of(files, "model.safetensors", "out.json")
    other = files.directory / "[red]" / "model.safetensors"
    other.parent.mkdir()
    other.write_bytes((files.directory / "model.safetensors").read_bytes())
    shutil.copy(files.directory / "model.toml", other.parent)
    shown = run_files(
        files, model, str(other), model, "--attacks", "fgsm", "--count", "8", "--json", out
    )
    result = result_of(files)
    assert [m["name"] for m in result["models"]] == [model, str(other)]
    assert [c["baseline"] for c in result["comparisons"]] == [f"{model} (torch)"]
    assert "[red]" in shown.partition("judged on")[0]  # the table's heading


def test_models_of_images_of_other_sizes_are_refused(files):
    images = np.random.default_rng(0).random((4, 28, 28))
    np.savez(files.directory / "test.npz", images=images, labels=np.arange(4))
    for side in (28, 32):  # 28x28 images get a border for the larger one
        spec = dataclasses.replace(SPEC, image_size=side)
        weights = encode_weights(flat_parameters(build_model(spec, seed=0)), layout_of(spec))
        (files.directory / f"of{side}.safetensors").write_bytes(weights)
        (files.directory / f"of{side}.toml").write_text(to_toml(spec))
    small, large = of(files, "of28.safetensors", "of32.safetensors")
    message = "of28 takes images of 1x28x28, of32 of 1x32x32"
    assert message in run_files(files, small, large, code=2)
    assert message in run_files(files, small, "--transfer-from", large, code=2)


def test_models_are_compared_on_the_same_images(files):
    first, out = of(files, "model.safetensors", "out.json")
    second = files.directory / "worse.safetensors"
    layout_size = (files.directory / "model.safetensors").read_bytes()
    second.write_bytes(layout_size[:-4000] + bytes(4000))  # its last weights are gone
    shutil.copy(files.directory / "model.toml", files.directory / "worse.toml")
    shown = run_files(files, first, str(second), "--json", out)
    (comparison,) = result_of(files)["comparisons"]
    assert (comparison["model"], comparison["baseline"]) == ("worse (torch)", "model (torch)")
    assert comparison["clean_gain"]["high"] < 0
    assert "worse (torch) beside model (torch)" in shown


def test_a_named_data_set_brings_its_images(files):
    model, out = of(files, "model.safetensors", "out.json")
    files.run(
        *EVALUATE, model, "--dataset", "digits", "--epsilon", "12.75/255", "--count", "20",
        "--json", out,
    )  # fmt: skip
    result = result_of(files)
    assert result["judged_on"]["kind"] == "dataset"
    assert result["judged_on"]["images"] == 20
    assert result["models"][0]["judgements"][0]["epsilon"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which model"),
        (("model.safetensors", "--attacks", "magic"), "unknown attack 'magic'"),
        (("model.safetensors", "--norm", "l1"), "unknown norm 'l1'; choose linf or l2"),
        (("model.safetensors", "--epsilon", "8/0"), "--epsilon '8/0' is no attack size"),
        (("model.safetensors", "--epsilon", "8"), "write 8 steps of 255 as 8/255"),
        (("model.safetensors", "--on", "test_set"), "choose one of --on, --images and --dataset"),
        (("model.safetensors", "--data", "/"), "--data / holds the files of which data set"),
        (("missing.safetensors",), "missing.safetensors"),
        (("undescribed.safetensors",), "describe it in undescribed.toml"),
        (("test.npz.onnx",), "no ONNX model"),
        (("fedavg",), "make one with 'server-toolkit init'"),
    ],
)
def test_what_cannot_be_judged_is_told_at_once(files, arguments, message):
    shutil.copy(files.directory / "model.safetensors", files.directory / "undescribed.safetensors")
    shutil.copy(files.directory / "test.npz", files.directory / "test.npz.onnx")
    names = [of(files, a)[0] if a.endswith((".safetensors", ".onnx")) else a for a in arguments]
    out = run_files(files, *names, code=2)
    assert message in out


def test_weights_of_another_network_are_refused(files):
    (files.directory / "model.toml").write_text(to_toml(SPEC).replace("width = 8", "width = 4"))
    out = run_files(files, *of(files, "model.safetensors"), code=2)
    assert "holds no weights of the described network" in out


def test_images_of_another_size_are_refused(files):
    np.savez(files.directory / "test.npz", images=np.zeros((4, 9, 9)), labels=np.arange(4))
    out = run_files(files, *of(files, "model.safetensors"), code=2)
    assert "images are 9x9, the model takes 16x16" in out


def test_without_an_attack_size_it_says_which_are_usual(files):
    model, images = of(files, "model.safetensors", "test.npz")
    out = files.run(*EVALUATE, model, "--images", images, code=2)
    assert "mnist 0.3" in out
    assert "cifar10 0.00784 and 0.0314" in out
