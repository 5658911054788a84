import dataclasses
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.cli import build_parser
from edge_sdk.commands.export import _calibration
from edge_sdk.errors import ConfigError, InferenceGateError, UnsupportedLayerError
from edge_sdk.export import inference_program
from edge_sdk.export.inference import check_inference
from edge_sdk.export.inference_stages import Chain, stages_of
from edge_sdk.export.int8_stages import Int8Range, quantize
from edge_sdk.export.xnnpack import lower_to_xnnpack
from edge_sdk.protocol.tensors import pack
from edge_sdk.runtime import ProgramFile
from edge_sdk.runtime.classifier import Classifier
from edge_sdk.training.evaluate import evaluate
from edge_sdk.training.sources import load_digits
from models import ModelSpec, layout_of
from models.layers import Convolution, InstanceNorm, Linear, MaxPool, ReLU
from models.networks import Network, build_model, flat_parameters
from tests.edge_sdk.conftest import convnet

CALIBRATION, TRAINING = slice(0, 200), slice(0, 600)
TEST = np.arange(600, 1797)


@pytest.fixture(scope="module")
def digits():
    return load_digits(16)


@pytest.fixture(scope="module")
def trained(digits):
    """A ConvNet of width 16 after four passes over 600 digits."""
    model = build_model(convnet(width=16), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    images = torch.from_numpy(digits.images[TRAINING])
    labels = torch.from_numpy(digits.labels[TRAINING])
    generator = torch.Generator().manual_seed(0)
    for batch in torch.cat([torch.randperm(600, generator=generator) for _ in range(4)]).split(20):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def program(runtime, digits, trained):
    """A function from a precision to the program of the trained network."""

    @functools.cache
    def make(precision):
        calibration = digits.images[CALIBRATION] if precision == "int8" else None
        flat = flat_parameters(trained)
        return inference_program(
            trained.spec, flat, batch=16, precision=precision, calibration=calibration
        )

    return make


def logits(model, images):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_accuracy_on_a_thousand_images_is_the_networks(program, trained, digits, precision):
    test = digits.subset(TEST)
    expected = float(np.mean(logits(trained, test.images).argmax(axis=1) == test.labels))
    assert expected > 0.85
    loss = expected - evaluate(program(precision), test, threads=1)
    assert abs(loss) <= (0.005 if precision == "int8" else 0)


def test_fp32_logits_equal_the_network_s_for_any_number_of_images(program, trained, digits):
    with Classifier(program("fp32")) as classifier:
        for count in (0, 1, 16, 37):
            images = digits.images[:count]
            np.testing.assert_allclose(
                classifier.predict(images), logits(trained, images), rtol=1e-4, atol=1e-4
            )


def test_an_image_s_int8_logits_do_not_depend_on_the_images_beside_it(program, digits):
    with Classifier(program("int8")) as classifier:
        together = classifier.predict(digits.images[:16])
        alone = np.concatenate([classifier.predict(digits.images[i : i + 1]) for i in range(16)])
    np.testing.assert_array_equal(together, alone)


def test_the_file_says_what_the_gate_measured(program):
    file = program("int8")
    assert file.inference.precision == "int8"
    assert (file.inference.calibration_images, file.inference.checked_images) == (150, 50)
    assert file.inference.agreement >= 0.9
    assert 1e-4 < file.gate.max_relative_error < file.gate.tolerance == 0.1
    assert program("fp32").gate.tolerance == 1e-4
    assert ProgramFile.from_bytes(file.to_bytes()) == file


def test_the_int8_arithmetic_on_the_device_is_the_one_that_was_simulated(trained, digits, program):
    """Only where a sum lies at a tie may a kernel round to the other neighbour."""
    images = torch.from_numpy(digits.images[CALIBRATION])
    kept = torch.arange(len(images)) % 4 == 3
    with torch.no_grad():
        chain = Chain(quantize(stages_of(trained), images[~kept]))
        simulated = chain(images[kept].permute(0, 2, 3, 1)).numpy()
    with Classifier(program("int8")) as classifier:
        found = classifier.predict(images[kept].numpy())
    assert np.linalg.norm(found - simulated) < 1e-3 * np.linalg.norm(simulated)


def test_scaling_channels_before_a_norm_changes_nothing(trained, digits):
    """With peaks of 1, 10, 100 ... in one tensor, a scale for the whole tensor would lose most."""
    spread = build_model(trained.spec)
    spread.load_state_dict(trained.state_dict())
    factors = torch.logspace(0, 4, 16)
    with torch.no_grad():
        for index in range(3):
            spread.features.get_submodule(f"conv{index}").weight.mul_(factors.view(-1, 1, 1, 1))
            spread.features.get_submodule(f"conv{index}").bias.mul_(factors)
    images = torch.from_numpy(digits.images[:64])
    with torch.no_grad():
        chain = Chain(quantize(stages_of(spread), images))
        found = chain(images.permute(0, 2, 3, 1))
        expected = spread(images)
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_norm_scales_may_be_negative_tiny_or_zero(trained, digits):
    odd = build_model(trained.spec)
    odd.load_state_dict(trained.state_dict())
    factors = torch.tensor([-1.0, 1.0, 0.0, 1e-9, -1e-5, 1e-3, -1.0, -2.0]).repeat(2)
    with torch.no_grad():
        for index in range(3):
            odd.features.get_submodule(f"norm{index}").weight.mul_(factors)
            odd.features.get_submodule(f"norm{index}").bias.add_(0.1)
        images = torch.from_numpy(digits.images[:32])
        expected = odd(images)
        found = Chain(stages_of(odd))(images.permute(0, 2, 3, 1))
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0.0, 2.55, 0.01, -128),
        (-1.0, 1.55, 0.01, -28),
        (0.5, 5.1, 0.02, -128),
        (0.0, 0.0, 1.0, 0),
    ],
)
def test_ranges_hold_zero_exactly(low, high, scale, zero):
    line = Int8Range.covering(low, high)
    assert (line.scale, line.zero) == (pytest.approx(scale), zero)
    values = torch.tensor([0.0, low, high])
    rounded = line.round(values)
    assert rounded[0] == 0
    assert (rounded - values).abs().max() <= line.scale / 2 + 1e-6


@pytest.fixture(scope="module")
def wide(runtime):
    """Width 128 at 3x32x32, both precisions, with random weights."""
    spec = convnet(channels=3, image_size=32, width=128)
    flat = flat_parameters(build_model(spec, seed=0))
    images = np.random.default_rng(0).random((16, 3, 32, 32), np.float32)
    fp32 = inference_program(spec, flat)
    return fp32, inference_program(spec, flat, precision="int8", calibration=images)


def test_an_int8_file_of_width_128_is_at_most_three_tenths_of_fp32(wide):
    fp32, int8 = (len(file.to_bytes()) for file in wide)
    assert int8 <= 0.3 * fp32


def small_alexnet(side):
    """5x5 and 3x3 convolutions without norms, max pools, an odd side behind the first."""
    spec = ModelSpec(channels=1, image_size=32, classes=3, depth=1, mean=(0.5,), std=(0.25,))
    object.__setattr__(spec, "image_size", side)
    layers = nn.Sequential()
    layers.conv0 = nn.Conv2d(1, 8, 5, padding=2)
    layers.relu0 = nn.ReLU()
    layers.pool0 = nn.MaxPool2d(2)
    layers.conv1 = nn.Conv2d(8, 8, 3, padding=1)
    layers.relu1 = nn.ReLU()
    layers.conv2 = nn.Conv2d(8, 8, 3, padding=1, stride=2)
    layers.relu2 = nn.ReLU()
    layers.pool2 = nn.AvgPool2d(2)
    with torch.no_grad():
        features = layers(torch.zeros(1, 1, side, side)).numel()
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return Network(spec, layers, features)


def test_networks_without_norms_and_with_odd_sides_are_one_delegate_too():
    side = 29
    model = small_alexnet(side)
    images = torch.rand(32, 1, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
        stages = quantize(stages_of(model), images)
        found = Chain(stages)(images.permute(0, 2, 3, 1))
    assert (found - expected).norm() < 0.05 * expected.norm()
    for chain in (Chain(stages_of(model)), Chain(stages)):
        assert lower_to_xnnpack(chain, torch.zeros(2, side, side, 1))  # raises otherwise


def test_alexnet_passes_the_gate_in_int8(runtime):
    spec = ModelSpec(
        architecture="alexnet", channels=3, image_size=16, classes=10,
        mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip
    images = np.random.default_rng(0).random((16, 3, 16, 16), np.float32)
    flat = flat_parameters(build_model(spec, seed=0))
    file = inference_program(spec, flat, precision="int8", calibration=images)
    assert file.inference.agreement >= 0.9


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.erf(x)


def test_an_operation_outside_of_the_delegate_is_refused():
    with pytest.raises(UnsupportedLayerError, match=r"outside of them: .*erf"):
        lower_to_xnnpack(Chain([Swish()]), torch.zeros(1, 4, 4, 1))


def test_a_layer_that_is_not_supported_is_named():
    model = build_model(convnet())
    model.features.norm1 = nn.GroupNorm(2, 8)
    with pytest.raises(UnsupportedLayerError, match=r"features\.norm1"):
        stages_of(model)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_program_with_other_weights_is_refused(program, trained, digits, precision):
    other = build_model(trained.spec, seed=5)
    with pytest.raises(InferenceGateError, match=f"{precision} program's logits"):
        check_inference(program(precision), other, digits.images[:16])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration": None}, "needs calibration images"),
        ({"calibration": np.zeros((7, 1, 16, 16), np.float32)}, "8 or more"),
        ({"calibration": np.zeros((9, 1, 16, 15), np.float32)}, "expected"),
        ({"calibration": np.zeros((9, 1, 16, 16))}, "float64"),
        ({"calibration": np.full((9, 1, 16, 16), 2, np.float32)}, r"\[0, 1\]"),
        ({"calibration": np.full((9, 1, 16, 16), np.nan, np.float32)}, r"\[0, 1\]"),
        ({"weights": np.zeros(3, np.float32)}, "weights"),
        ({"weights": np.full(layout_of(convnet()).size, np.nan, np.float32)}, "NaN"),
    ],
)
def test_what_does_not_fit_is_named_before_the_work(change, message):
    good = {
        "weights": np.zeros(layout_of(convnet()).size, np.float32),
        "calibration": np.zeros((9, 1, 16, 16), np.float32),
    } | change
    with pytest.raises(ConfigError, match=message):
        inference_program(convnet(), good.pop("weights"), precision="int8", **good)


def test_the_classifier_takes_only_inference_programs_and_images_that_fit(program, digits):
    with pytest.raises(ConfigError, match="no weights inside"):
        Classifier(dataclasses.replace(program("fp32"), kind="evaluation"))
    with Classifier(program("fp32")) as classifier:
        for images in (digits.images[0], digits.images[:2, :, 1:], digits.images[:2].astype("f8")):
            with pytest.raises(ConfigError, match="expected"):
                classifier.predict(images)


MODEL = [
    "--channels", "1", "--image-size", "16", "--classes", "10", "--width", "16", "--mean", "0.5",
    "--std", "0.25",
]  # fmt: skip


def command(*arguments):
    line = [sys.executable, "-m", "edge_sdk.cli", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_export_and_predict_as_commands(runtime, tmp_path, digits, trained):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(pack(layout_of(trained.spec).split(flat_parameters(trained))))
    np.savez(tmp_path / "c.npz", images=digits.images[CALIBRATION], labels=digits.labels[:200])
    test = digits.subset(TEST)
    np.savez(tmp_path / "test.npz", images=test.images, labels=test.labels)
    made = command(
        "export", "--inference", *MODEL, "--weights", weights, "--precision", "int8",
        "--calibration", tmp_path / "c.npz", "--output", tmp_path / "p.tsp",
    )  # fmt: skip
    assert "of 50 images" in made
    answer = json.loads(
        command("predict", "--program", tmp_path / "p.tsp", tmp_path / "test.npz", "--json")
    )
    assert answer["precision"] == "int8"
    found = np.array(answer["classes"])
    assert answer["accuracy"] == np.mean(found == test.labels)
    assert np.mean(found == logits(trained, test.images).argmax(axis=1)) > 0.98


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "w"], "belong to --inference"),
        (["--inference"], "needs --weights"),
        (["--inference", "--weights", "w", "--precision", "int8"], "takes --calibration"),
        (["--inference", "--weights", "w", "--calibration", "c"], "only then"),
        (["--inference", "--weights", "w", "--precision", "simulated-int8"], "is for training"),
        (["--inference", "--weights", "w"], "No such file"),
        (["--inference", "--weights", __file__], "this model's weights"),
    ],
)
def test_wrong_options_of_the_command_are_named(tmp_path, options, message):
    arguments = build_parser().parse_args(["export", *MODEL, "--output", "p.tsp", *options])
    with pytest.raises(ConfigError, match=message):
        arguments.run(arguments)


def test_calibration_images_come_out_of_a_proxy_set_too(tmp_path):
    images = np.random.default_rng(0).random((9, 1, 16, 16), np.float32)
    (tmp_path / "proxy.safetensors").write_bytes(pack({"images": images}))
    np.testing.assert_array_equal(_calibration(tmp_path / "proxy.safetensors", convnet()), images)
    (tmp_path / "other.safetensors").write_bytes(pack({"weight": images}))
    for name in ("other.safetensors", "none.safetensors", "none.npz"):
        with pytest.raises(ConfigError, match=name):
            _calibration(tmp_path / name, convnet())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_chain_with_several_linear_layers(runtime, precision):
    layers = (
        Convolution(outputs=6, kernel=5, bias=False),
        InstanceNorm(),
        MaxPool(size=2),
        ReLU(),
        Linear(outputs=9),
        ReLU(),
        Linear(outputs=7, bias=False),
    )
    spec = ModelSpec(
        architecture="chain", channels=1, image_size=9, classes=4, mean=(0.5,), std=(0.25,),
        layers=layers,
    )  # fmt: skip
    network = build_model(spec, seed=0)
    images = np.random.default_rng(0).random((32, 1, 9, 9), np.float32)
    calibration = images if precision == "int8" else None
    file = inference_program(
        spec, flat_parameters(network), precision=precision, calibration=calibration
    )
    tolerance = 1e-4 if precision == "fp32" else 0.1
    assert 0 < file.gate.max_relative_error < tolerance
