import dataclasses

import numpy as np
import pytest
import torch

from edge_sdk.errors import ConfigError, ProtocolError
from edge_sdk.export import training_program as export
from edge_sdk.export.rounded_layers import round_layers
from edge_sdk.runtime import ProgramFile, set_threads
from edge_sdk.training import train, train_adversarially
from edge_sdk.training.ranges import Ranges
from models.networks import build_model, flat_parameters, load_flat
from tests.edge_sdk.conftest import convnet

OPTIONS = dict(epochs=1, batch_size=10, learning_rate=0.05, seed=5)


def rows(*pairs):
    return [np.array(pairs, np.float32)]


def test_ranges_begin_empty():
    assert [a.tolist() for a in Ranges(2).arrays] == [[1, -1], [1, -1]]


def test_the_first_micro_batch_sets_a_range_and_later_ones_move_it_by_a_twentieth():
    ranges = Ranges(1)
    (array,) = ranges.arrays
    ranges.update(rows((-1, 2), (0, 4)), 2)
    assert array.tolist() == [-1, 4]
    ranges.update(rows((-3, 2), (0, 24)), 2)
    np.testing.assert_allclose(array, [-1 - 2 / 20, 4 + 20 / 20], rtol=1e-6)
    ranges.update(rows((3, 5), (3, 5)), 2)
    np.testing.assert_allclose(array, [-1.1 + 4.1 / 20, 5], rtol=1e-6)
    assert ranges.arrays[0] is array  # a program reads it


def test_every_layer_has_a_range_of_its_own():
    ranges = Ranges(2)
    ranges.update(rows((0, 1)) + rows((-5, -4)), 1)
    assert [a.tolist() for a in ranges.arrays] == [[0, 1], [-5, -4]]


def test_padding_rows_do_not_count():
    ranges = Ranges(1)
    ranges.update(rows((0, 1), (-900, 900)), 1)
    assert ranges.arrays[0].tolist() == [0, 1]
    ranges.update(rows((0, 1), (-900, 900), (-900, 900)), 1)
    assert ranges.arrays[0].tolist() == [0, 1]


@pytest.fixture(scope="module")
def quantized(runtime):
    """ConvNet of width 8 at 1x16x16, micro-batch 4, with simulated int8."""
    return export(convnet(), quantized=True)


@pytest.fixture
def start(quantized):
    return flat_parameters(build_model(quantized.spec, seed=0))


@pytest.fixture
def dataset(small_dataset):
    """Never black: a padding image, which is, would widen the first layer's range."""
    return dataclasses.replace(small_dataset, pixels=small_dataset.pixels * 0.5 + np.float32(0.3))


def parts(indices, size):
    return [indices[i : i + size] for i in range(0, len(indices), size)]


class Reference:
    """Quantization-aware training in float64, with ranges kept here and layers in torch."""

    def __init__(self, file, start):
        self.model = build_model(file.spec).double()
        load_flat(self.model, start)
        self.ranges = dict.fromkeys(file.ranges)
        self.seen = {}
        for name in self.ranges:
            layer = self.model.get_submodule(name.removesuffix(".range"))
            layer.register_forward_pre_hook(lambda _, inputs, n=name: self.see(n, inputs[0]))

    def see(self, name, x):
        self.seen[name] = np.array([x.min().item(), x.max().item()])

    def gradient(self, dataset, indices):
        """The gradients of the summed loss of a micro-batch; moves the ranges."""
        round_layers(self.model, self.ranges)
        logits = self.model(torch.from_numpy(dataset.images[indices]).double())
        labels = torch.from_numpy(dataset.labels[indices])
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        found = torch.autograd.grad(loss, list(self.model.parameters()))
        for name, seen in self.seen.items():
            old = self.ranges[name]
            self.ranges[name] = seen if old is None else 0.95 * old + 0.05 * seen
        return found

    def train(self, dataset, *, epochs, batch_size, learning_rate, seed, momentum=0.0):
        rng = np.random.Generator(np.random.PCG64(seed))
        parameters = list(self.model.parameters())
        velocity = [torch.zeros_like(p) for p in parameters]
        for _ in range(epochs):
            for batch in parts(rng.permutation(len(dataset)), batch_size):
                total = [torch.zeros_like(p) for p in parameters]
                for part in parts(batch, 4):
                    for sum_, found in zip(total, self.gradient(dataset, part), strict=True):
                        sum_ += found
                with torch.no_grad():
                    for p, v, g in zip(parameters, velocity, total, strict=True):
                        v.mul_(momentum).add_(g / len(batch))
                        p.sub_(v, alpha=learning_rate)
        return flat_parameters(self.model)


def relative(found, expected, start):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected - start)


def test_two_steps_with_padded_micro_batches_follow_float64(
    quantized, small_training_program, dataset, start
):
    """Batches of 10 are micro-batches of 4, 4 and 2."""
    few = dataset.subset(np.arange(20))
    expected = Reference(quantized, start).train(few, **OPTIONS)
    found = train(quantized, start, few, **OPTIONS, threads=1)
    assert found.steps == 2
    assert relative(found.weights, expected, start) < 1e-4
    without = train(small_training_program, start, few, **OPTIONS, threads=1)
    assert relative(without.weights, expected, start) > 0.05


def test_ten_steps_follow_quantized_training_in_float64(quantized, dataset, start):
    """Where float32 and float64 fall to different sides of a rounding boundary, paths part.

    That is rare: most orders of the examples stay together to a ten-thousandth of the way. The
    others differ by less than the half of what rounding itself does to the weights.
    """
    errors = []
    for seed in range(5):
        options = dict(epochs=2, batch_size=8, learning_rate=0.05, seed=seed, momentum=0.9)
        expected = Reference(quantized, start).train(dataset, **options)
        found = train(quantized, start, dataset, **options, threads=1)
        assert found.steps == 10
        errors.append(relative(found.weights, expected, start))
    assert np.median(errors) < 1e-4, errors
    assert max(errors) < 0.06, errors


def test_ranges_begin_anew_with_every_training(quantized, dataset, start):
    first, second = (
        train(quantized, start, dataset, **OPTIONS, threads=1).weights for _ in range(2)
    )
    assert first.tobytes() == second.tobytes()


def test_the_result_does_not_depend_on_threads(quantized, dataset, start):
    try:
        results = [
            train(quantized, start, dataset, **OPTIONS, threads=n).weights for n in (1, 2, 5)
        ]
    finally:
        set_threads(1)
    assert {r.tobytes() for r in results} == {results[0].tobytes()}


def test_adversarial_training_takes_a_quantized_program(
    quantized, attack_program, small_dataset, start
):
    attack = attack_program(convnet(), 4)
    values = dict(step_size=0.025, attack_steps=2)
    run = [quantized, attack, start, small_dataset]
    still = train_adversarially(*run, epsilon=0.0, **values, **OPTIONS, threads=1)
    assert (
        still.weights.tobytes()
        == train(quantized, start, small_dataset, **OPTIONS, threads=1).weights.tobytes()
    )
    moved = train_adversarially(*run, epsilon=0.1, **values, **OPTIONS, threads=1)
    assert moved.loss_last_epoch > still.loss_last_epoch


def test_a_quantized_program_file_is_read_back_equal(quantized):
    names = [f"features.conv{i}.range" for i in range(3)] + ["classifier.range"]
    assert list(quantized.ranges) == names
    assert ProgramFile.from_bytes(quantized.to_bytes()) == quantized


def test_one_range_too_few_or_too_many_is_refused(quantized):
    for ranges in (quantized.ranges[1:], (*quantized.ranges, "more.range"), ()):
        other = dataclasses.replace(quantized, ranges=ranges)
        with pytest.raises(ProtocolError, match="describes"):
            other.load_program()


@pytest.mark.parametrize("seen", [(np.nan, np.nan), (0, np.inf), (-np.inf, 0)])
def test_activations_that_are_not_finite_end_training_and_leave_the_range(seen):
    ranges = Ranges(1)
    with pytest.raises(ConfigError, match="learning rate"):
        ranges.update(rows((0, 1), seen), 2)
    assert ranges.arrays[0].tolist() == [1, -1]
    ranges.update(rows((0, 1), seen), 1)  # the rest is padding
    assert ranges.arrays[0].tolist() == [0, 1]
