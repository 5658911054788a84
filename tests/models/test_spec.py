"""Chains of layers in descriptions: strict, bounded, and what stored descriptions say stays."""

import hashlib
import json

import pytest

from models import ModelSpec, SpecError, layout_of
from models.description import read_description, to_toml
from models.layers import AveragePool, Convolution, InstanceNorm, Linear, MaxPool, ReLU

GREY = dict(channels=1, image_size=28, classes=10, mean=(0.5,), std=(0.25,))
LAYERS = (
    Convolution(outputs=8, kernel=5),
    ReLU(),
    MaxPool(size=2),
    Convolution(outputs=6, kernel=3, bias=False),
    InstanceNorm(),
    ReLU(),
    AveragePool(size=3),
    Linear(outputs=20, bias=False),
    ReLU(),
)
SPEC = ModelSpec(architecture="chain", layers=LAYERS, **GREY)


def test_a_chain_survives_json_and_is_hashable():
    text = json.dumps(SPEC.to_dict())
    assert ModelSpec.from_dict(json.loads(text)) == SPEC
    assert hash(ModelSpec.from_dict(json.loads(text))) == hash(SPEC)
    assert SPEC.to_dict()["layers"][0] == {
        "layer": "conv", "outputs": 8, "kernel": 5, "bias": True,
    }  # fmt: skip


def test_layers_are_named_by_kind_and_place():
    names = [p.name for p in layout_of(SPEC).parameters]
    assert names == [
        "features.conv0.weight",
        "features.conv0.bias",
        "features.conv3.weight",
        "features.norm4.weight",
        "features.norm4.bias",
        "features.linear7.weight",
        "classifier.weight",
        "classifier.bias",
    ]
    # 28 pixels, halved, then a third of 14 without what is left over.
    assert layout_of(SPEC).parameters[5].shape == (20, 6 * 4 * 4)


def test_descriptions_of_before_chains_stay_as_they_were():
    """Ledgers and releases store them: the keys, and the layout's fingerprint, by hand."""
    spec = ModelSpec(**GREY | {"image_size": 32})
    assert list(spec.to_dict()) == [
        "architecture", "channels", "image_size", "classes", "width", "depth", "mean", "std",
    ]  # fmt: skip
    parameters, channels = [], 1
    for block in range(3):
        parameters.append([f"features.conv{block}.weight", [128, channels, 3, 3]])
        parameters += [[f"features.conv{block}.bias", [128]]]
        parameters += [[f"features.norm{block}.{kind}", [128]] for kind in ("weight", "bias")]
        channels = 128
    parameters += [["classifier.weight", [10, 2048]], ["classifier.bias", [10]]]
    text = json.dumps(parameters, separators=(",", ":"))
    assert layout_of(spec).fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]


CONV = {"layer": "conv", "outputs": 4, "kernel": 3}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("conv", "must be a list"),
        ([CONV] * 65, "at most 64"),
        (["conv"], r"layers\[0\]: a layer is 'conv'"),
        ([CONV, {"layer": "conv3d"}], r"layers\[1\]: layer is 'conv3d'; choose from conv, norm"),
        ([{"layer": ["conv"]}], "choose from"),
        ([{}], "choose from"),
        ([CONV | {"stride": 2}], "unknown or missing fields stride"),
        ([{"layer": "conv", "outputs": 4}], "unknown or missing fields kernel"),
        ([CONV | {"kernel": 4}], "odd"),
        ([CONV | {"kernel": 17}], "from 1 to 15"),
        ([CONV | {"kernel": 3.0}], "must be an integer"),
        ([CONV | {"outputs": True}], "must be an integer"),
        ([CONV | {"outputs": 10**400}], "outputs is"),
        ([CONV | {"bias": 1}], "true or false"),
        ([{"layer": "norm", "epsilon": 1e-3}], "epsilon"),
        ([{"layer": "maxpool", "size": 1}], "from 2 to 64"),
        ([{"layer": "maxpool", "size": 29}], "maxpool0: there is no square of 29"),
        ([{"layer": "linear", "outputs": 16_385}], "from 1 to 16384"),
        ([{"layer": "linear", "outputs": 5}, CONV], "conv1: only relu and linear"),
        ([{"layer": "avgpool", "size": 28}, {"layer": "norm"}], "norm1: the norm of a single"),
        ([CONV | {"outputs": 4096}] * 9, "parameters"),
    ],
)
def test_what_is_no_chain_is_refused_and_named(layers, message):
    fields = SPEC.to_dict() | {"layers": layers}
    with pytest.raises(SpecError, match=message) as caught:
        ModelSpec.from_dict(fields)
    assert len(str(caught.value)) < 400


def test_a_layer_of_too_many_numbers_is_refused():
    wide = (Convolution(outputs=4096, kernel=1),)
    with pytest.raises(SpecError, match="conv0 gives"):
        ModelSpec(architecture="chain", layers=wide, **GREY | {"image_size": 512})


@pytest.mark.parametrize("change", [{"layers": []}, {"architecture": "chain"}])
def test_layers_and_the_chain_belong_together(change):
    fields = ModelSpec(**GREY).to_dict() | change
    with pytest.raises(SpecError, match="unknown or missing fields layers"):
        ModelSpec.from_dict(fields)


@pytest.mark.parametrize(
    "spec", [SPEC, ModelSpec(**GREY, width=7), ModelSpec(**GREY, architecture="alexnet")]
)
def test_a_description_survives_toml_and_json_files(tmp_path, spec):
    (tmp_path / "m.toml").write_text(to_toml(spec))
    (tmp_path / "server.toml").write_text("[run]\nname = 'a'\n[model]\n" + to_toml(spec))
    (tmp_path / "m.json").write_text(json.dumps(spec.to_dict()))
    for name in ("m.toml", "server.toml", "m.json"):
        assert read_description(tmp_path / name) == spec


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.toml", b"layers = [", "no TOML"),
        ("m.json", b"[" * 100_000, "no JSON"),
        ("m.json", b"\xff", "no JSON"),
        ("m.json", b"[1]", "holds no model description"),
        ("m.toml", b"model = 3", "holds no model description"),
        ("m.toml", b"channels = 1", "missing fields classes"),
    ],
)
def test_a_file_that_is_no_description_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=rf"{name}.*{message}"):
        read_description(tmp_path / name)
    with pytest.raises(SpecError, match="No such file"):
        read_description(tmp_path / "absent.toml")
