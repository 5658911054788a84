import argparse

import pytest

from edge_sdk.commands import export as cli
from edge_sdk.errors import ConfigError
from edge_sdk.runtime import ProgramFile


def parse(*arguments):
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers())
    return parser.parse_args(["export", *arguments])


OPTIONS = ["--channels", "1", "--classes", "2", "--mean", "0.5", "--std", "0.25"]


def test_the_command_writes_a_program_file(tmp_path, runtime, capsys):
    path = tmp_path / "p.tsp"
    size = ["--image-size", "4", "--width", "4", "--depth", "1", "--micro-batch", "2"]
    args = parse(*OPTIONS, *size, "--output", str(path), "--evaluation")
    assert args.run(args) == 0
    file = ProgramFile.load(path)
    assert (file.kind, file.micro_batch, file.spec.width) == ("evaluation", 2, 4)
    assert "tolerance 1e-04" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["simulated-int8", "int8"])
def test_the_command_writes_a_quantized_training_program(tmp_path, runtime, precision):
    path = tmp_path / "p.tsp"
    size = ["--image-size", "8", "--width", "64", "--depth", "2", "--micro-batch", "1"]
    args = parse(*OPTIONS, *size, "--output", str(path), "--precision", precision)
    assert args.run(args) == 0
    file = ProgramFile.load(path)
    assert file.kind == "training"
    assert file.ranges == ("features.conv0.range", "features.conv1.range", "classifier.range")
    assert file.int8_arithmetic == (precision == "int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evaluation", "--precision", "simulated-int8"], "--evaluation is in fp32"),
        (["--inference", "--weights", "w", "--precision", "simulated-int8"], "is for training"),
        (["--inference", "--weights", "w", "--precision", "int8"], "--calibration with"),
        (["--inference", "--weights", "w", "--calibration", "c"], "--calibration with"),
        (["--inference"], "needs --weights"),
        (["--calibration", "c"], "belong to --inference"),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path, options, message):
    args = parse(*OPTIONS, "--image-size", "32", "--output", str(tmp_path / "p"), *options)
    with pytest.raises(ConfigError, match=message):
        args.run(args)


def test_images_too_small_for_the_pooling_are_a_user_error(tmp_path):
    args = parse(*OPTIONS, "--image-size", "7", "--output", str(tmp_path / "p.tsp"))
    with pytest.raises(ConfigError, match="norm2: the norm of a single pixel"):
        args.run(args)


def test_a_missing_folder_is_found_before_the_work(tmp_path):
    args = parse(*OPTIONS, "--image-size", "32", "--output", str(tmp_path / "no" / "p.tsp"))
    with pytest.raises(ConfigError, match="no such folder"):
        args.run(args)
