"""`edge-sdk export check` and what is behind it."""

import argparse
import itertools
import json
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.commands import export as cli
from edge_sdk.errors import ConfigError, UnsupportedLayerError
from edge_sdk.export import check_model, training_check
from edge_sdk.export.blocks import LinearBlock
from edge_sdk.export.chain import blocks_of_layers
from edge_sdk.export.supported import judge
from edge_sdk.export.trace import trace
from edge_sdk.runtime import ProgramFile, instruction_sets
from models.description import read_description
from models.layers import AveragePool, Convolution, InstanceNorm, Linear, MaxPool, ReLU

CONV8 = Convolution(outputs=8, kernel=3)


@pytest.mark.parametrize(
    ("layer", "word", "replacement"),
    [
        (nn.BatchNorm2d(4), "GroupNorm(4, 4)", (InstanceNorm(),)),
        (nn.GroupNorm(2, 4), "GroupNorm(4, 4)", (InstanceNorm(),)),
        (nn.GroupNorm(4, 4, affine=False), "GroupNorm(4, 4)", (InstanceNorm(),)),
        (nn.InstanceNorm2d(4), "GroupNorm(4, 4)", (InstanceNorm(),)),
        (nn.LayerNorm([4, 9, 9]), "GroupNorm(4, 4)", (InstanceNorm(),)),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), "AvgPool2d(2)", (CONV8, AveragePool(size=2))),
        (nn.Conv2d(4, 8, 3), "padding=1", (CONV8,)),
        (nn.Conv2d(4, 8, 2), "3x3", (CONV8,)),
        (nn.Conv2d(4, 8, (1, 3), padding=(0, 1)), "3x3", (CONV8,)),
        (nn.Conv2d(4, 8, 3, padding=2, dilation=2), "no dilation", (CONV8,)),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), "groups=1", (CONV8,)),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), "zeros", (CONV8,)),
        (nn.Conv2d(4, 8, 17, padding=8), "15x15", (Convolution(outputs=8, kernel=15),)),
        (nn.MaxPool2d(3, 2), "MaxPool2d(2)", (MaxPool(size=2),)),
        (nn.MaxPool2d(2, ceil_mode=True), "MaxPool2d(2)", (MaxPool(size=2),)),
        (nn.MaxPool2d(3, 1, padding=1), "leave it out", ()),
        (nn.AvgPool2d((1, 3)), "AvgPool2d(3)", (AveragePool(size=3),)),
        (nn.AdaptiveAvgPool2d(1), "AvgPool2d(9)", (AveragePool(size=9),)),
        (nn.AdaptiveAvgPool2d((3, None)), "leave it out", ()),
        (nn.AdaptiveMaxPool2d(3), "MaxPool2d(3)", (MaxPool(size=3),)),
        (nn.AdaptiveAvgPool2d(20), "leave it out", ()),
        (nn.GELU(), "use ReLU", (ReLU(),)),
        (nn.LeakyReLU(), "use ReLU", (ReLU(),)),
        (nn.ReLU6(), "use ReLU", (ReLU(),)),
        (nn.Dropout(0.5), "leave it out", ()),
        (nn.Identity(), "leave it out", ()),
        (nn.Linear(9, 5), "Flatten", (Linear(outputs=5),)),
        (nn.Flatten(2), "Flatten()", ()),
        (nn.ConvTranspose2d(4, 8, 3), "supported are", None),
        (nn.MultiheadAttention(4, 1), "supported are", None),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3, padding=1)), "plain", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_is_not_supported_has_a_replacement_or_a_reason(layer, word, replacement):
    verdict = judge(layer, (4, 9, 9), first=False)
    assert verdict.problem
    assert word in verdict.advice
    assert verdict.layers == replacement
    with pytest.raises(UnsupportedLayerError, match="layer odd, "):
        blocks_of_layers(
            [("odd", layer), ("flatten", nn.Flatten()), ("l", nn.Linear(2, 2))], (4, 9, 9)
        )


@pytest.mark.parametrize(
    ("layer", "layers"),
    [
        (nn.Conv2d(4, 8, 3, padding="same"), (CONV8,)),
        (nn.Conv2d(4, 8, 1, padding="valid"), (Convolution(outputs=8, kernel=1),)),
        (nn.GroupNorm(4, 4), (InstanceNorm(),)),
        (nn.MaxPool2d(3, ceil_mode=True), (MaxPool(size=3),)),
        (nn.AvgPool2d(4), (AveragePool(size=4),)),
        (nn.ReLU(inplace=True), (ReLU(),)),
    ],
)
def test_what_is_supported_is_described(layer, layers):
    verdict = judge(layer, (4, 9, 9), first=False)
    assert (verdict.problem, verdict.layers) == ("", layers)


def test_a_hook_is_not_overlooked():
    layer = nn.ReLU()
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    assert "hooks" in judge(layer, (4, 9, 9), first=False).problem


class LeNet(nn.Module):
    """As it was: valid convolutions, functions in place of layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.full, self.last = nn.Linear(16, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.relu(self.conv2(x)).mean((2, 3))
        x = nn.functional.dropout(self.full(x), training=self.training)
        return self.last(x.view(x.size(0), -1).relu())


def test_functions_are_read_as_layers():
    steps = trace(LeNet(), (1, 14, 14))
    assert [type(step.layer).__name__ for step in steps] == [
        "Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten",
        "Linear", "Dropout", "Flatten", "ReLU", "Linear",
    ]  # fmt: skip
    assert steps[5].behind == steps[6].before == (16, 1, 1)
    assert all(a.behind == b.before for a, b in itertools.pairwise(steps))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 2)

    def forward(self, x):
        return self.last((x + self.conv(x)).flatten(1))


class Twice(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](self[0](x)).flatten(1))


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (Residual(), "branches"),
        (Twice(nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 2)), "used twice"),
    ],
)
def test_what_is_no_chain_is_named_and_has_no_replacement(model, problem):
    found = check_model.check_module(model, (1, 4, 4))
    assert not found.supported
    assert found.description is found.training is None
    assert problem in found.no_description
    assert [layer for layer in found.layers if problem in layer.problem]


def test_a_model_that_cannot_be_followed_or_fed_is_a_users_mistake():
    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ConfigError, match="cannot be followed"):
        trace(Deciding(), (1, 4, 4))
    with pytest.raises(ConfigError, match="does not take 3x4x4 images"):
        trace(Residual(), (3, 4, 4))


def test_a_network_of_ones_own_is_compared_with_float64(runtime):
    """Odd sides, no square, no Normalize, an end without bias."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GroupNorm(3, 3, eps=1e-3)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(3 * 3 * 4, 4, bias=False),
    )
    found = check_model.check_module(model, (2, 7, 9), batch=3)
    assert found.supported
    assert [layer.block for layer in found.layers] == [
        "1 ReLU", "2 Convolution", "3 norm, max pool", "3 norm, max pool", "", "4 ReLU", "5 Linear",
    ]  # fmt: skip
    assert found.layers[1].flop == 2 * (2 * 9) * (3 * 7 * 9)
    assert (found.layers[1].parameters, found.layers[3].output) == (2 * 3 * 9 + 3, (3, 3, 4))
    assert "square" in found.no_description
    training = found.training
    assert training.failures == ()
    assert [each.instruction_set for each in training.sets] == list(instruction_sets())
    for each in training.sets:
        assert [g.after_steps for g in each.gradients] == [0, 1, 20]
        assert set(each.gradients[0].errors) >= {"loss", "logits", "1.0.weight", "5.weight"}
        assert 0 < each.drift < 1e-3


def test_a_wrong_block_is_found(runtime, monkeypatch):
    class Wrong(LinearBlock):
        def backward(self, dy, saved, values):
            dx, gradients = super().backward(dy, saved, values)
            ones = torch.full((dx.shape[-1],), 1.01)
            return torch.ops.trajsyn.scale_shift(dx, ones, torch.zeros_like(ones)), gradients

    monkeypatch.setattr("edge_sdk.export.chain.LinearBlock", Wrong)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 3))
    found = check_model.check_module(model, (1, 4, 4))
    assert found.supported
    first = found.training.sets[0].gradients[0]
    assert first.errors["0.weight"] == pytest.approx(0.01, rel=0.01)
    assert "0.weight is off by 1.0e-02" in "".join(found.training.failures)
    assert found.training.sets[0].drift > 100 * found.training.float32_drift


def test_a_nan_is_a_failure():
    nan = training_check.GradientErrors(1, {"a": 1e-6, "b": float("nan")})
    each = training_check.InstructionSetCheck("avx2", (nan,), float("nan"))
    failures = training_check.TrainingCheck(0.01, 1e-6, (each,)).failures
    assert len(failures) == 1
    assert "b is off by nan" in failures[0]


OWN = """
    from torch import nn

    def batch_norm():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.GELU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )

    def no_module():
        return 3

    def broken():
        raise IndexError("my own mistake")
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN))
    return path


def run(*arguments):
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers())
    args = parser.parse_args(["export", *map(str, arguments)])
    return args.run(args)


def test_the_command_replaces_writes_and_checks_what_it_wrote(own, tmp_path, runtime, capsys):
    toml, found, program = (tmp_path / name for name in ("net.toml", "found.json", "p.tsp"))
    written = ("--write", toml, "--json", found)
    assert run("check", f"{own}:batch_norm", "--input", "1,9,9", *written) == 3
    text = capsys.readouterr().out
    assert text.count("NOT SUPPORTED") == 4
    assert "GroupNorm(4, 4)" in text
    assert "training of the replacement" in text
    assert read_description(toml).layers == (
        Convolution(outputs=4, kernel=3),
        AveragePool(size=2),
        InstanceNorm(),
        ReLU(),
        AveragePool(size=4),
    )
    result = json.loads(found.read_text())
    assert not result["supported"]
    assert len(result["layers"]) == 6
    assert result["training"]["failures"] == []
    assert np.isfinite(result["training"]["float32_drift"])

    assert run("check", toml) == 0
    assert run("--model", toml, "--output", program, "--micro-batch", 2) == 0
    assert ProgramFile.load(program).spec == read_description(toml)


def test_the_command_knows_the_networks_by_name(runtime, capsys):
    options = ("--channels", 1, "--image-size", 9, "--classes", 3, "--width", 3, "--depth", 2)
    assert run("check", "convnet", *options) == 0
    assert "3x2x2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "OWN:batch_norm"], "needs --input"),
        (["check", "OWN:batch_norm", "--input", "1,9"], "three numbers"),
        (["check", "OWN:batch_norm", "--input", "1,0,9"], "above 0"),
        (["check", "OWN:batch_norm", "--input", "1,9,9", "--classes", "3"], "nothing else"),
        (["check", "OWN:absent", "--input", "1,9,9"], "has no function 'absent'"),
        (["check", "OWN:no_module", "--input", "1,9,9"], "returned int"),
        (["check", "OWN:broken", "--input", "1,9,9"], r"own.py:14: IndexError: my own mistake"),
        (["check", "OWN", "--input", "1,9,9"], "which function"),
        (["check", "OWN:batch_norm", "--input", "1,9,8"], "square images"),
        (["check", "convnet", "--write", "/no/such/folder/f.toml"], "cannot be written"),
        (["check", "absent.py:f", "--input", "1,9,9"], "no such file"),
        (["check", "absent.toml"], "No such file"),
        (["check", "convnet", "--input", "1,9,9"], "belongs to FILE.py"),
        (["check", "convnet"], "--channels, --image-size"),
        (["check", "convnet", "--micro-batch", "0"], "above 0"),
        (["--channels", "1", "--output", "x"], "--image-size, --classes, --mean, --std must"),
        (["--model", "m.toml", "--classes", "3", "--output", "x"], "leave out --classes"),
    ],
)
def test_wrong_options_are_a_users_mistake(own, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(*(argument.replace("OWN", str(own)) for argument in arguments))
