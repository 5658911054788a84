import numpy as np
import pytest
import torch

from edge_sdk.errors import GradientGateError, UnsupportedLayerError
from edge_sdk.export import gate
from edge_sdk.export.blocks import ActivationBlock, LinearBlock, Norm, NormalizeBlock
from edge_sdk.export.chain import blocks_of
from edge_sdk.export.operators import AVERAGE_POOL
from edge_sdk.export.programs import export
from edge_sdk.runtime import ProgramFile
from models import ModelSpec
from models.networks import Network, build_model, flat_parameters
from tests.edge_sdk.conftest import convnet


def scaled(tensor, factor):
    """Return `tensor * factor` in the runtime's operators."""
    channels = tensor.shape[-1]
    constants = torch.full((channels,), factor), torch.zeros(channels)
    return torch.ops.trajsyn.scale_shift(tensor, *constants)


TINY = ModelSpec(channels=1, image_size=4, classes=2, width=4, depth=1, mean=(0.5,), std=(0.25,))


@pytest.mark.parametrize(
    ("spec", "micro_batch"),
    [
        (convnet(), 4),
        (TINY, 1),
        (convnet(width=32), 4),
        (convnet(width=128, image_size=32), 4),
        (convnet(width=128, image_size=32, channels=3), 4),
    ],
    ids=["small", "one sample", "demo", "1x32x32", "3x32x32"],
)
def test_the_gradients_pass_the_gate(training_program, spec, micro_batch):
    file = training_program(spec, micro_batch)
    assert 0 < file.gate.max_relative_error < 1e-4
    assert file.micro_batch == micro_batch
    without = [p.name for p, used in zip(file.parameters, file.is_input, strict=True) if not used]
    assert without == [f"features.conv{i}.bias" for i in range(spec.depth)]
    assert ProgramFile.from_bytes(file.to_bytes()) == file


def test_the_program_carries_no_weights(training_program):
    file = training_program(convnet(width=128, image_size=32, channels=3), 4)
    assert len(file.pte) < 100_000 < 4 * file.layout.size


def test_padding_rows_change_nothing(small_training_program):
    file = small_training_program
    program = file.load_program()
    rng = np.random.default_rng(0)
    flat = flat_parameters(build_model(file.spec, seed=1))
    weights = [w for w, t in zip(file.to_program(flat), file.is_input, strict=True) if t]
    images = rng.random(program.inputs[0].shape, dtype=np.float32)
    labels = np.eye(10, dtype=np.float32)[[3, 1, 4, 4]]
    labels[2:] = 0
    results = []
    for filler in (0.0, 1.0):
        images[2:] = filler
        outputs = [o.empty() for o in program.outputs]
        program.execute([images, labels, *weights], outputs)
        results.append(outputs)
    for index, (a, b) in enumerate(zip(*results, strict=True)):
        if index != 1:  # logits of the padding rows differ, of course
            np.testing.assert_array_equal(a, b)


def test_evaluation_logits_equal_the_network(small_evaluation_program):
    file = small_evaluation_program
    model = build_model(file.spec, seed=2)
    images = np.random.default_rng(0).random((16, 16, 16, 1), dtype=np.float32)
    program = file.load_program()
    arrays = file.to_program(flat_parameters(model))
    taken = [a for a, t in zip(arrays, file.is_input, strict=True) if t]
    logits = program.outputs[0].empty()
    program.execute([images, *taken], [logits])
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [convnet(), convnet(width=32, channels=3)])
def test_the_attack_gives_the_gradient_of_every_image(attack_program, spec):
    file = attack_program(spec, 4)
    assert file.kind == "attack"
    assert 0 < file.gate.max_relative_error < 1e-4
    assert ProgramFile.from_bytes(file.to_bytes()) == file
    program = file.load_program()
    model = build_model(spec, seed=3)
    rng = np.random.default_rng(0)
    images = rng.random(program.inputs[0].shape, dtype=np.float32)
    labels = rng.integers(10, size=4)
    rows = np.eye(10, dtype=np.float32)[labels]
    rows[-1] = 0
    arrays = file.to_program(flat_parameters(model))
    taken = [a for a, t in zip(arrays, file.is_input, strict=True) if t]
    outputs = [o.empty() for o in program.outputs]
    program.execute([images, rows, *taken], outputs)

    leaf = torch.from_numpy(images[:3]).double().permute(0, 3, 1, 2).requires_grad_()
    logits = model.double()(leaf)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[:3]), reduction="sum")
    (truth,) = torch.autograd.grad(loss, leaf)
    assert outputs[0][0] == pytest.approx(loss.item(), rel=1e-5)
    for found, expected in zip(outputs[2], truth.permute(0, 2, 3, 1).numpy(), strict=False):
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    assert not outputs[2][3].any()


class OddGradientBlock(LinearBlock):
    """A weight gradient that no program can hold."""

    def backward(self, dy, saved, values):
        dx, gradients = super().backward(dy, saved, values)
        return dx, gradients | {self.weight: torch.cumsum(gradients[self.weight], dim=0)}


def test_an_attack_program_computes_no_weight_gradients(runtime):
    blocks = blocks_of(build_model(TINY))
    blocks[-1] = OddGradientBlock("classifier", (4, 2, 2), 2)
    with pytest.raises(UnsupportedLayerError, match="cumsum"):
        export("training", TINY, blocks, 2)
    assert gate.check(export("attack", TINY, blocks, 2)).gate.max_relative_error < 1e-4


class WrongPixelBlock(NormalizeBlock):
    """A half percent off in the images' gradient."""

    def backward(self, dy, saved, values):
        return scaled(super().backward(dy, saved, values)[0], 1.005), {}


def test_the_gate_refuses_a_wrong_gradient_of_the_images(runtime):
    blocks = blocks_of(build_model(TINY))
    blocks[0] = WrongPixelBlock(torch.tensor([0.5]), torch.tensor([0.25]))
    with pytest.raises(GradientGateError, match=r"images is off by 5.0e-03"):
        gate.check(export("attack", TINY, blocks, 2))


NORM = Norm("features.norm0", 4, 1e-5)
NORM_RELU_POOL = {"norm": NORM, "relu": True, "pool": AVERAGE_POOL, "pool_size": 2}


class WrongScaleBlock(ActivationBlock):
    """A half percent off in one gradient."""

    def backward(self, dy, saved, values):
        dx, gradients = super().backward(dy, saved, values)
        return dx, gradients | {NORM.scale: scaled(gradients[NORM.scale], 1.005)}


def test_the_gate_refuses_a_wrong_gradient_and_names_it(runtime):
    blocks = blocks_of(build_model(TINY))
    blocks[2] = WrongScaleBlock(**NORM_RELU_POOL)
    file = export("training", TINY, blocks, 2)
    with pytest.raises(GradientGateError, match=r"features.norm0.weight is off by 5.0e-03"):
        gate.check(file)
    assert gate.check(file, tolerance=6e-3).gate.worst == "features.norm0.weight"


def test_the_gate_refuses_a_parameter_that_was_left_out(runtime):
    class Deaf(ActivationBlock):
        """Takes no shift, as if the loss did not depend on it."""

        @property
        def forms(self):
            return {NORM.scale: super().forms[NORM.scale]}

        def forward(self, x, values):
            return super().forward(x, {**values, NORM.shift: torch.zeros(4)})

        def backward(self, dy, saved, values):
            return super().backward(dy, saved, {**values, NORM.shift: torch.zeros(4)})

    blocks = blocks_of(build_model(TINY))
    blocks[2] = Deaf(**NORM_RELU_POOL)
    with pytest.raises(GradientGateError, match=r"features.norm0.bias is off by 1.0e\+00"):
        gate.check(export("training", TINY, blocks, 2))


def test_alexnet_passes_the_gate(training_program):
    channels = {"channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    spec = ModelSpec(architecture="alexnet", image_size=32, classes=10, **channels)
    file = training_program(spec, 4)
    assert 0 < file.gate.max_relative_error < 1e-4
    assert all(file.is_input)  # nothing cancels a bias here


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (torch.nn.MaxPool2d(3, stride=2), "MaxPool2d"),
        (torch.nn.MaxPool2d(3, ceil_mode=True), "MaxPool2d"),
        (torch.nn.GroupNorm(2, 8), "GroupNorm"),
        (torch.nn.AvgPool2d(2, padding=1), "AvgPool2d"),
        (torch.nn.Conv2d(8, 8, 3, padding=1, stride=2), "Conv2d"),
        (torch.nn.Conv2d(8, 8, 3), "Conv2d"),
        (torch.nn.Conv2d(8, 8, 4, padding="same"), "Conv2d"),
        (torch.nn.BatchNorm2d(8), "BatchNorm2d"),
    ],
)
def test_an_unsupported_layer_is_named(layer, name):
    network = build_model(convnet())
    features = torch.nn.Sequential()
    features.add_module("conv0", network.features.conv0)
    features.add_module("odd", layer)
    odd = Network(network.spec, features, 8)
    with pytest.raises(UnsupportedLayerError, match=rf"features.odd, {name}"):
        blocks_of(odd)
