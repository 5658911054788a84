"""What is judged where nothing was said about it."""

import numpy as np
import pytest

from server_toolkit.benchmark.presets import epsilons_of
from server_toolkit.errors import ConfigError
from server_toolkit.stages.assess import default_sizes
from server_toolkit.stages.evaluate import Judge


def images(kind, name):
    return Judge(kind, name, "0" * 64, np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, int), None)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "digits"])
def test_a_named_data_set_is_judged_at_the_sizes_of_the_benchmark(name):
    assert default_sizes(images("dataset", name), "linf", None) == epsilons_of(name, ())


def test_other_images_and_the_l2_norm_have_no_usual_size():
    for judge, norm in ((images("file", "digits"), "linf"), (images("dataset", "digits"), "l2")):
        with pytest.raises(ConfigError, match=r"--epsilon.* mnist 0\.3, .*digits 0\.1"):
            default_sizes(judge, norm, None)
