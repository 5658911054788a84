import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from edge_sdk.errors import ProtocolError
from edge_sdk.runtime import Form, GateResult, ProgramFile, ProgramParameter
from models import ModelSpec, layout_of

SPEC = ModelSpec(
    channels=2, image_size=4, classes=3, width=5, depth=1, mean=(0.0,) * 2, std=(1.0,) * 2
)


def vector(size):
    return Form(view=(size,), axes=(0,), shape=(size,))


@pytest.fixture
def file():
    forms = {
        "features.conv0.weight": Form(view=(5, 2, 3, 3), axes=(0, 2, 3, 1), shape=(5, 18)),
        "features.conv0.bias": None,
        "features.norm0.weight": vector(5),
        "features.norm0.bias": vector(5),
        "classifier.weight": Form(view=(3, 5, 2, 2), axes=(0, 2, 3, 1), shape=(3, 20)),
        "classifier.bias": vector(3),
    }
    return ProgramFile(
        kind="training",
        spec=SPEC,
        micro_batch=4,
        gate=GateResult(1e-6, 1e-4, "classifier.weight"),
        parameters=tuple(
            ProgramParameter(p.name, p.shape, forms[p.name]) for p in layout_of(SPEC).parameters
        ),
        pte=b"not looked at" * 10,
    )


def edited(file, **changes):
    """The file's bytes with other values in its description."""
    data = file.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    fields = json.loads(header["__metadata__"]["trajsyn_program"]) | changes
    pte = np.frombuffer(file.pte, np.uint8)
    return safetensors.numpy.save({"pte": pte}, metadata={"trajsyn_program": json.dumps(fields)})


def test_a_saved_file_is_read_back_equal(file, tmp_path):
    file.save(tmp_path / "p.tsp")
    assert ProgramFile.load(tmp_path / "p.tsp") == file


def test_weights_map_to_program_form_and_back_exactly(file):
    flat = np.arange(file.layout.size, dtype=np.float32)
    arrays = file.to_program(flat)
    assert np.array_equal(file.from_program(arrays), flat)
    convolution = flat[:90].reshape(5, 2, 3, 3)
    assert arrays[0][4, (1 * 3 + 2) * 2 + 1] == convolution[4, 1, 1, 2]
    classifier = file.layout.split(flat)["classifier.weight"].reshape(3, 5, 2, 2)
    assert arrays[4][2, (1 * 2 + 0) * 5 + 3] == classifier[2, 3, 1, 0]


def test_program_arrays_are_copies(file):
    flat = np.zeros(file.layout.size, np.float32)
    for array in file.to_program(flat):
        array += 1
    assert not flat.any()


def test_a_parameter_without_a_form_is_no_input(file):
    assert file.is_input == (True, False, True, True, True, True)


def test_arrays_of_another_shape_are_named(file):
    arrays = file.to_program(np.zeros(file.layout.size, np.float32))
    arrays[2] = np.zeros(6, np.float32)
    with pytest.raises(ValueError, match=r"features\.norm0\.weight"):
        file.from_program(arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "trajsyn-program-2"}, "format"),
        ({"kind": "inference"}, "kind"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"micro_batch": True}, "micro_batch"),
        ({"layout": "0" * 16}, "layout"),
        ({"image_shape": [4, 4, 1]}, "image shape"),
        ({"sha256": "0" * 64}, "hash"),
        ({"surprise": 1}, "unknown field '?surprise"),
        ({"parameters": []}, "parameters"),
        ({"spec": {"channels": 2}}, "model description"),
        ({"gate": {"max_relative_error": 0.0, "tolerance": "low", "worst": ""}}, "tolerance"),
        ({"ranges": ["features.conv0.range"], "kind": "evaluation"}, "ranges do not fit"),
        ({"ranges": ["classifier.range"], "kind": "attack"}, "ranges do not fit"),
        ({"ranges": ["classifier.range"] * 2}, "ranges do not fit"),
        ({"ranges": ["classifier.range", 3]}, "ranges"),
        ({"ranges": "classifier.range"}, "ranges"),
        ({"ranges": None}, "ranges"),
    ],
)
def test_a_wrong_description_is_refused(file, changes, message):
    with pytest.raises(ProtocolError, match=message):
        ProgramFile.from_bytes(edited(file, **changes))


def test_a_form_that_is_no_permutation_or_of_another_size_is_refused(file):
    fields = [dataclasses.asdict(p) for p in file.parameters]
    for form in (
        {"view": [5, 2, 3, 3], "axes": [0, 2, 3, 3], "shape": [5, 18]},
        {"view": [5, 2, 3, 3], "axes": [0, 2, 3, 1], "shape": [5, 19]},
        {"view": [5, 2, 9, 9], "axes": [0, 2, 3, 1], "shape": [5, 162]},
        {"view": [-5, -2, 9], "axes": [0, 1, 2], "shape": [90]},
        {"view": [], "axes": [], "shape": []},
    ):
        fields[0]["form"] = form
        with pytest.raises(ProtocolError):
            ProgramFile.from_bytes(edited(file, parameters=fields))


@pytest.mark.parametrize("size", [0, 7, 8, 100, 10_000])
def test_random_bytes_are_no_program_file(size, tmp_path):
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "p.tsp").write_bytes(data)
    with pytest.raises(ProtocolError, match=r"p\.tsp"):
        ProgramFile.load(tmp_path / "p.tsp")


def test_every_truncation_is_refused(file):
    data = file.to_bytes()
    for size in range(0, len(data), 7):
        with pytest.raises(ProtocolError):
            ProgramFile.from_bytes(data[:size])


def test_other_tensor_files_are_no_program_files(file):
    pte = np.frombuffer(file.pte, np.uint8)
    for tensors in ({"weights": pte}, {"pte": pte.astype(np.float32)}, {"pte": pte}):
        with pytest.raises(ProtocolError, match="not a program file"):
            ProgramFile.from_bytes(safetensors.numpy.save(tensors))


def test_a_program_that_is_not_as_described_is_refused(small_training_program):
    other = dataclasses.replace(small_training_program, micro_batch=5)
    with pytest.raises(ProtocolError, match="describes"):
        other.load_program()


def test_metadata_that_is_null_is_refused():
    tensor = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    header = json.dumps({"__metadata__": None, "pte": tensor}).encode()
    with pytest.raises(ProtocolError, match="no description"):
        ProgramFile.from_bytes(len(header).to_bytes(8, "little") + header + b"x")
