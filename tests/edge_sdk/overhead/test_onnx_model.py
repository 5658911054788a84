"""The hand-made ONNX file is the network that torch builds."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edge_sdk.overhead.onnx_model import onnx_bytes
from models import ModelSpec
from models.layers import Convolution, Linear, MaxPool, ReLU
from models.networks import build_model, flat_parameters


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(
            channels=3, image_size=16, classes=7, width=6, depth=2,
            mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25),
        ),
        ModelSpec(
            architecture="alexnet", channels=1, image_size=16, classes=10, mean=(0.1,), std=(0.5,)
        ),
        ModelSpec(
            architecture="chain", channels=1, image_size=13, classes=5, mean=(0.1,), std=(0.5,),
            layers=(
                Convolution(outputs=4, kernel=5, bias=False), ReLU(), MaxPool(size=2),
                Linear(outputs=9), ReLU(),
            ),
        ),
    ],
    ids=["convnet", "alexnet", "chain"],
)  # fmt: skip
def test_logits_are_torch_s(spec):
    model = build_model(spec, seed=3)
    data = onnx_bytes(spec, flat_parameters(model))
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    shape = (5, spec.channels, spec.image_size, spec.image_size)
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    (logits,) = session.run(["logits"], {"images": images})
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
