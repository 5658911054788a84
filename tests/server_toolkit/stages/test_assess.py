"""What is judged where nothing was said about it, and which files belong together."""

import numpy as np
import pytest

from models import ModelSpec
from server_toolkit.benchmark.presets import epsilons_of
from server_toolkit.errors import ConfigError
from server_toolkit.stages.assess import default_sizes, twins
from server_toolkit.stages.evaluate import Judge
from server_toolkit.stages.subjects import Subject

SHAPE = ModelSpec(channels=1, image_size=8, classes=2, mean=(0.0,), std=(1.0,))


def images(kind, name):
    return Judge(kind, name, "0" * 64, np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, int), None)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "digits"])
def test_a_named_data_set_is_judged_at_the_sizes_of_the_benchmark(name):
    assert default_sizes(images("dataset", name), "linf", None) == epsilons_of(name, ())


def test_other_images_and_the_l2_norm_have_no_usual_size():
    for judge, norm in ((images("file", "digits"), "linf"), (images("dataset", "digits"), "l2")):
        with pytest.raises(ConfigError, match=r"--epsilon.* mnist 0\.3, .*digits 0\.1"):
            default_sizes(judge, norm, None)


def subject(name, kind, sha256, *, lent_by=None):
    return Subject(
        name=name, kind=kind, sha256=sha256, model=lambda x: x, shape=SHAPE, surrogate=lent_by
    )


def test_files_of_one_model_belong_together():
    mine, other = subject("mine", "torch", "a"), subject("other", "torch", "b", lent_by=None)
    fp32, int8 = (subject("mine", kind, kind, lent_by=mine) for kind in ("onnx_fp32", "onnx_int8"))
    attacked = subject("attacked", "torch", "c", lent_by=mine)  # by transfer; another model
    alone = subject("alone", "onnx_int8", "d")
    everything = [mine, fp32, other, int8, attacked, alone]
    assert twins(fp32, everything) == twins(mine, everything) == [mine, fp32, int8]
    for one in (other, attacked, alone):
        assert twins(one, everything) == [one]
