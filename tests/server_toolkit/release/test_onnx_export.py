import numpy as np
import onnx
import pytest
import torch

from models import ModelSpec
from models.layers import AveragePool, Convolution, InstanceNorm, Linear, MaxPool, ReLU
from models.networks import build_model
from server_toolkit.errors import GateError
from server_toolkit.release.onnx_export import export_onnx, parity
from server_toolkit.release.onnx_model import OnnxModel


@pytest.fixture(scope="module")
def exported(trained):
    return export_onnx(trained.model)


def test_the_exported_file_computes_what_torch_computes(trained, exported):
    difference = parity(trained.model, exported, trained.test_images[:100])
    assert 0 < difference < 1e-4


def test_parity_finds_a_single_changed_bias(trained, exported):
    proto = onnx.load_from_string(exported)
    (bias,) = [t for t in proto.graph.initializer if t.name == "classifier.bias"]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[3] += 0.05
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    with pytest.raises(GateError, match=r"differs from torch by 0\.05"):
        parity(trained.model, proto.SerializeToString(), trained.test_images[:100])


def test_input_and_output_have_the_agreed_names_and_any_batch_size(trained, exported):
    graph = onnx.load_from_string(exported).graph
    (images,), (logits,) = graph.input, graph.output
    assert (images.name, logits.name) == ("images", "logits")
    dimensions = images.type.tensor_type.shape.dim
    assert dimensions[0].dim_param
    assert [d.dim_value for d in dimensions[1:]] == [1, 16, 16]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_the_same_weights_give_the_same_bytes(trained, exported):
    assert export_onnx(trained.model) == exported


def test_the_file_says_nothing_about_the_machine_that_made_it(exported):
    assert b"/" not in exported.replace(b"\x2f\x00", b"") or b".py" not in exported
    proto = onnx.load_from_string(exported)
    assert not any(node.metadata_props for node in proto.graph.node)


def test_each_group_norm_is_one_instance_normalization_node(exported):
    operators = [node.op_type for node in onnx.load_from_string(exported).graph.node]
    assert operators.count("InstanceNormalization") == 3
    assert "GroupNormalization" not in operators


RGB = dict(channels=3, classes=4, mean=(0.5,) * 3, std=(0.2,) * 3)
LAYERS = (
    Convolution(outputs=6, kernel=5, bias=False),
    InstanceNorm(),
    MaxPool(size=2),
    ReLU(),
    Convolution(outputs=5, kernel=1),
    InstanceNorm(),
    AveragePool(size=3),
    Linear(outputs=7),
    ReLU(),
)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(architecture="alexnet", image_size=8, **RGB),
        ModelSpec(architecture="alexnet", image_size=15, **RGB),
        ModelSpec(width=8, depth=2, image_size=7, **RGB),
        ModelSpec(architecture="chain", layers=LAYERS, image_size=15, **RGB),
    ],
    ids=["alexnet", "alexnet of odd sides", "convnet of odd sides", "chain"],
)
def test_every_architecture_exports(spec):
    model = build_model(spec, seed=1)
    images = np.random.default_rng(0).random((5, 3, *2 * [spec.image_size]), np.float32)
    data = export_onnx(model)
    assert parity(model, data, images) < 1e-4
    assert b"GroupNormalization" not in data
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(OnnxModel(data).logits(images), expected, atol=1e-5)
