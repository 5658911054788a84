import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import models
from server_toolkit.release.onnx_export import OPSET, export_onnx
from server_toolkit.release.onnx_model import OnnxModel
from server_toolkit.release.quantize import quantize_onnx


@pytest.fixture(scope="module")
def pair(trained):
    fp32 = export_onnx(trained.model)
    return fp32, quantize_onnx(fp32, trained.train_images[:200])


def linear_model(weight, bias):
    """images (batch, 1, 4, 4) -> flatten -> x @ weight.T + bias, as an ONNX file."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
    ).SerializeToString()


def test_a_linear_models_error_stays_below_the_bound_of_its_rounding_steps():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(5, 16)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    images = rng.random((40, 1, 4, 4), np.float32)
    images[0], images[1] = 0, 1  # the calibrated range is exactly [0, 1]
    logits = OnnxModel(quantize_onnx(linear_model(weight, bias), images)).logits(images)
    x = images.reshape(40, 16).astype(np.float64)
    error = np.abs(logits - (x @ weight.T + bias))
    # Rounding moves x by at most half of 1/255 and a weight by at most half of its row's max / 64
    # (7 bits: -64..64 or -63..63), the bias by half of the product of both steps.
    half_x, half_w = 0.5 / 255, 0.5 * np.abs(weight).max(axis=1) / 63
    bound = half_x * np.abs(weight).sum(axis=1) + half_w * (x.sum(axis=1)[:, None] + 16 * half_x)
    assert (error <= bound + 2 * half_x * half_w + 1e-5).all()
    assert error.max() > 1e-4  # it was quantized at all


def test_logits_outside_of_the_calibrated_range_are_not_clipped():
    weight, bias = np.full((2, 16), 1, np.float32), np.zeros(2, np.float32)
    dark = np.zeros((8, 1, 4, 4), np.float32)
    dark[0, 0, 0, 0] = 1  # every pixel's range is [0, 1], but logits are at most 1
    model = OnnxModel(quantize_onnx(linear_model(weight, bias), dark))
    logits = model.logits(np.ones((1, 1, 4, 4), np.float32))
    np.testing.assert_allclose(logits, 16, atol=0.2)


def test_int8_keeps_the_accuracy_within_a_point(trained, pair):
    fp32, int8 = (OnnxModel(data).logits(trained.test_images).argmax(axis=1) for data in pair)
    labels = trained.test_labels
    assert (fp32 == labels).mean() > 0.9
    assert (int8 == labels).mean() > (fp32 == labels).mean() - 0.01


def test_calibration_on_noise_alone_keeps_the_accuracy_within_a_point(trained, pair):
    noise = np.random.default_rng(0).random((200, 1, 16, 16), np.float32)
    labels = trained.test_labels
    fp32 = (OnnxModel(pair[0]).logits(trained.test_images).argmax(axis=1) == labels).mean()
    int8 = OnnxModel(quantize_onnx(pair[0], noise)).logits(trained.test_images)
    assert (int8.argmax(axis=1) == labels).mean() > fp32 - 0.01


def test_weights_are_int8_and_normalisation_stays_in_float(pair):
    proto = onnx.load_from_string(pair[1])
    made_by = {output: node for node in proto.graph.node for output in node.output}
    types = {t.name: t.data_type for t in proto.graph.initializer}
    layers = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for layer in layers:
        dequantize = made_by[layer.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        assert types[dequantize.input[0]] == TensorProto.INT8
    assert "logits" in {o for n in layers for o in n.output}


def test_int8_is_smaller(pair):
    assert len(pair[1]) < len(pair[0])


def test_the_same_calibration_gives_the_same_bytes(trained, pair):
    assert quantize_onnx(pair[0], trained.train_images[:200]) == pair[1]


def test_quantizing_leaves_the_import_path_alone(pair):
    assert not [p for p in sys.path if p.endswith("onnxruntime/transformers")]
    assert hasattr(models, "ModelSpec")
