import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from edge_sdk.errors import ConfigError
from edge_sdk.training import Dataset, NoisySteps, epsilon_spent, train, train_privately
from edge_sdk.training.secure_random import SecureRandom
from models.networks import build_model, flat_parameters, load_flat
from tests.edge_sdk.conftest import convnet

SPEC = convnet()
OPTIONS = dict(epochs=1, batch_size=10, learning_rate=0.05, threads=1)
PRIVACY = dict(clip_norm=1.0, noise_multiplier=1.0, delta=1e-3, insecure_seed=7)


@pytest.fixture
def file(training_program):
    return training_program(SPEC, 1)


@pytest.fixture
def start():
    return flat_parameters(build_model(SPEC, seed=0))


def flat_gradient(model, image, label):
    loss = torch.nn.functional.cross_entropy(model(image[None]), label[None])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def reference(start, dataset, seed, *, epochs, clip_norm, rate=0.05, batch_size=10):
    """DP-SGD without noise in float64 on the same Poisson samples; also the largest norm."""
    model = build_model(SPEC).double()
    load_flat(model, start)
    draws, largest = SecureRandom(insecure_seed=seed), 0.0
    images = torch.from_numpy(dataset.images).double()
    labels = torch.from_numpy(dataset.labels)
    for _ in range(epochs * math.ceil(len(dataset) / batch_size)):
        total = torch.zeros(start.size, dtype=torch.float64)
        for i in draws.choose(len(dataset), batch_size / len(dataset)):
            gradient = flat_gradient(model, images[i], labels[i])
            largest = max(largest, float(gradient.norm()))
            total += gradient * min(1.0, clip_norm / float(gradient.norm()))
        flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        flat -= rate * total / batch_size
        torch.nn.utils.vector_to_parameters(flat, model.parameters())
    return flat_parameters(model), largest


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_without_noise_the_steps_follow_float64(file, small_dataset, start, clip_norm):
    result = train_privately(
        file,
        start,
        small_dataset,
        **OPTIONS | dict(epochs=2),
        **PRIVACY | dict(clip_norm=clip_norm, noise_multiplier=0.0),
    )
    expected, largest = reference(start, small_dataset, 7, epochs=2, clip_norm=clip_norm)
    moved = np.linalg.norm(expected - start)
    assert np.linalg.norm(result.weights - expected) < 1e-4 * moved
    assert result.steps == 8
    assert result.epsilon == math.inf
    assert largest > 0.5  # so that one case clips and the other does not


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_step_equals_opacus(file, small_dataset, start):
    """The whole data set is the batch; opacus' noise is off and ours is checked by itself."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    dataset = small_dataset.subset(np.arange(12))
    ours = train_privately(
        file,
        start,
        dataset,
        **OPTIONS | dict(batch_size=12),
        **PRIVACY | dict(clip_norm=0.7, noise_multiplier=0.0),
    )
    model = build_model(SPEC, seed=0)
    load_flat(model, start)
    wrapped = GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=0.05),
        noise_multiplier=0.0,
        max_grad_norm=0.7,
        expected_batch_size=12,
    )
    torch.nn.functional.cross_entropy(
        wrapped(torch.from_numpy(dataset.images)), torch.from_numpy(dataset.labels)
    ).backward()
    optimizer.step()
    expected = flat_parameters(model)
    assert np.linalg.norm(ours.weights - expected) < 1e-4 * np.linalg.norm(expected - start)


def test_the_noise_has_the_deviation_that_the_accountant_assumes(file, small_dataset, start):
    """One step on the same sample with and without noise: the difference is the noise alone."""
    values = PRIVACY | dict(clip_norm=0.5, noise_multiplier=3.0)
    run = functools.partial(
        train_privately, file, start, small_dataset, **OPTIONS | dict(batch_size=40)
    )
    noisy = run(**values).weights
    quiet = run(**values | dict(noise_multiplier=0.0)).weights
    noise = (noisy - quiet).astype(np.float64) / (0.05 * 3.0 * 0.5 / 40)
    pieces = file.layout.split(noise.astype(np.float32))
    for parameter in file.parameters:
        values = pieces[parameter.name].ravel()
        if parameter.form is None:  # no image has a gradient there, so there is nothing to hide
            assert not values.any()
        else:
            count = values.size
            assert abs(values.mean()) < 4 / math.sqrt(count)
            assert abs(np.mean(values**2) - 1) < 5 * math.sqrt(2 / count)


def test_one_example_moves_the_sum_by_no_more_than_the_clipping_norm(file, small_dataset, start):
    """What the guarantee rests on, at the weights: adding an image whose gradient is huge."""
    values = OPTIONS | dict(batch_size=12, learning_rate=1.0)
    privacy = PRIVACY | dict(noise_multiplier=0.0, clip_norm=0.3)
    start = start * 3
    dataset = small_dataset.subset(np.arange(12))
    fewer = small_dataset.subset(np.arange(11))
    run = functools.partial(train_privately, file, start, **privacy)
    with_it = run(dataset, **values).weights
    without = run(fewer, **values | dict(batch_size=11)).weights
    change = 12 * (with_it - start).astype(np.float64) - 11 * (without - start)
    assert 0.3 * 0.9 < np.linalg.norm(change) < 0.3 * (1 + 1e-3)


def test_epsilon_counts_the_rounds_before(file, small_dataset, start):
    run = functools.partial(train_privately, file, start, small_dataset, **OPTIONS)
    first = run(**PRIVACY)
    assert first.history == (NoisySteps(1.0, 0.25, 4),)
    assert first.epsilon == epsilon_spent([NoisySteps(1.0, 0.25, 4)], delta=1e-3)
    second = run(**PRIVACY, history=first.history)
    assert second.epsilon == pytest.approx(
        epsilon_spent([NoisySteps(1.0, 0.25, 8)], delta=1e-3), rel=1e-12
    )
    assert second.delta == 1e-3


def test_a_stopped_training_spends_only_the_steps_it_took(file, small_dataset, start):
    asked = []

    def stop():
        asked.append(None)
        return len(asked) > 25

    result = train_privately(file, start, small_dataset, **OPTIONS, **PRIVACY, should_stop=stop)
    assert not result.completed
    assert 0 < result.steps < 4
    assert result.history[-1].steps == result.steps


def test_an_empty_batch_is_a_step_of_noise(file, small_dataset, start):
    one = small_dataset.subset(np.arange(30))
    seen = []
    result = train_privately(
        file,
        start,
        one,
        **OPTIONS | dict(batch_size=1),
        **PRIVACY,
        on_step=lambda *step: seen.append(step),
    )
    assert result.steps == 30
    assert any(math.isnan(loss) for _, _, loss in seen)
    assert np.isfinite(result.weights).all()
    assert math.isfinite(result.loss_last_epoch)


def test_the_numbers_repeat_only_under_a_seed(file, small_dataset, start):
    run = functools.partial(train_privately, file, start, small_dataset, **OPTIONS)
    assert run(**PRIVACY).weights.tobytes() == run(**PRIVACY).weights.tobytes()
    secret = PRIVACY | dict(insecure_seed=None)
    assert run(**secret).weights.tobytes() != run(**secret).weights.tobytes()


def test_it_still_learns(file, small_evaluation_program, small_dataset, start):
    from edge_sdk.training import accuracy

    many = Dataset(
        np.tile(small_dataset.images, (5, 1, 1, 1)), np.tile(small_dataset.labels, 5), 10
    )
    result = train_privately(
        file,
        start,
        many,
        **OPTIONS | dict(epochs=4, batch_size=50, learning_rate=0.2, momentum=0.5),
        **PRIVACY | dict(noise_multiplier=0.5),
    )
    before = accuracy(small_evaluation_program, start, small_dataset)
    assert accuracy(small_evaluation_program, result.weights, small_dataset) > before + 0.2


def test_what_gives_no_privacy_is_refused(
    file, small_training_program, small_evaluation_program, small_dataset, start
):
    run = functools.partial(train_privately, start=start, dataset=small_dataset, **OPTIONS)
    with pytest.raises(ConfigError, match="4 images at once"):
        run(small_training_program, **PRIVACY)
    with pytest.raises(ConfigError, match="evaluation program cannot train"):
        run(small_evaluation_program, **PRIVACY)
    with pytest.raises(ConfigError, match="not quantized"):
        run(dataclasses.replace(file, ranges=("features.conv0",)), **PRIVACY)
    for wrong, text in (
        ({"clip_norm": 0.0}, "clipping norm is 0.0"),
        ({"clip_norm": math.nan}, "clipping norm is nan"),
        ({"noise_multiplier": -1.0}, "noise multiplier of -1.0"),
        ({"delta": 0.0}, "delta is 0.0"),
    ):
        with pytest.raises(ConfigError, match=text):
            run(file, **PRIVACY | wrong)
    with pytest.raises(ConfigError, match="empty"):
        run(file, dataset=small_dataset.subset(np.array([], np.int64)), **PRIVACY)
    with pytest.raises(ConfigError, match="batch size 0"):
        run(file, **PRIVACY, batch_size=0)


def test_clipping_nothing_and_adding_nothing_is_plain_training(file, small_dataset, start):
    """With every example in the batch there is nothing left that differs but the order."""
    values = OPTIONS | dict(batch_size=40)
    private = train_privately(
        file,
        start,
        small_dataset,
        **values,
        **PRIVACY | dict(clip_norm=1e9, noise_multiplier=0.0),
    )
    plain = train(file, start, small_dataset, seed=0, **values)
    moved = np.linalg.norm(plain.weights - start)
    assert np.linalg.norm(private.weights - plain.weights) < 1e-5 * moved
