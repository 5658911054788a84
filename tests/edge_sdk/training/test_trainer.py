import dataclasses

import numpy as np
import pytest
import torch

from edge_sdk.errors import ConfigError
from edge_sdk.training import Dataset, accuracy, logits, train
from models.networks import build_model, flat_parameters


@pytest.fixture
def start(small_training_program):
    return flat_parameters(build_model(small_training_program.spec, seed=0))


OPTIONS = dict(epochs=1, batch_size=10, learning_rate=0.05, seed=5, threads=1)


def eager(spec, dataset, *, epochs, batch_size, learning_rate, seed, proximal_mu=0.0, **options):
    """The same training in torch, on the same order of examples."""
    model = build_model(spec, seed=0)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, **options)
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(epochs):
        order = rng.permutation(len(dataset))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            images = torch.from_numpy(dataset.images[batch])
            loss = torch.nn.functional.cross_entropy(
                model(images), torch.from_numpy(dataset.labels[batch])
            )
            for p, s in zip(model.parameters(), start, strict=True):
                loss = loss + proximal_mu / 2 * ((p - s) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return flat_parameters(model)


@pytest.mark.parametrize(
    ("batch_size", "options"),
    [
        (8, {"momentum": 0.9, "weight_decay": 0.01}),  # 2 x (8, 8, 8, 8, 8): whole micro-batches
        (9, {"proximal_mu": 0.5}),  # the last batch has 4, each but it a padded micro-batch
    ],
)
def test_ten_steps_follow_torch(small_training_program, small_dataset, start, batch_size, options):
    values = OPTIONS | dict(epochs=2, batch_size=batch_size) | options
    result = train(small_training_program, start, small_dataset, **values)
    values.pop("threads")
    expected = eager(small_training_program.spec, small_dataset, **values)
    assert result.steps == 10
    assert result.samples == 40
    moved = np.linalg.norm(expected - start)
    assert np.linalg.norm(result.weights - expected) < 1e-4 * moved


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    small_training_program, small_dataset, start
):
    first, second, other = (
        train(small_training_program, start, small_dataset, **OPTIONS | {"seed": s}).weights
        for s in (1, 1, 2)
    )
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


def test_training_learns_and_leaves_the_start_alone(
    small_training_program, small_evaluation_program, small_dataset, start
):
    before = start.copy()
    seen = []
    result = train(
        small_training_program,
        start,
        small_dataset,
        **OPTIONS | dict(epochs=8, momentum=0.9),
        on_step=lambda *step: seen.append(step),
    )
    assert np.array_equal(start, before)
    assert result.completed
    assert result.loss_last_epoch < 0.3 * result.loss_first_epoch
    assert accuracy(small_evaluation_program, result.weights, small_dataset) > 0.9
    assert [s[:2] for s in seen] == [(i, 32) for i in range(1, 33)]
    mean = np.mean([loss for _, _, loss in seen[:4]])
    assert mean == pytest.approx(result.loss_first_epoch, rel=1e-6)
    assert result.wall_s > 0
    assert result.cpu_s > 0


def test_a_strong_proximal_term_keeps_the_weights_near_the_start(
    small_training_program, small_dataset, start
):
    def distance(mu):
        values = OPTIONS | dict(epochs=3, proximal_mu=mu)
        weights = train(small_training_program, start, small_dataset, **values).weights
        return np.linalg.norm(weights - start)

    assert distance(5.0) < 0.5 * distance(0.0)


def test_a_stop_request_ends_training_at_the_next_micro_batch(
    small_training_program, small_dataset, start
):
    asked = []

    def stop():
        asked.append(None)
        return len(asked) > 4

    result = train(small_training_program, start, small_dataset, **OPTIONS, should_stop=stop)
    assert not result.completed
    assert result.steps == 1  # three micro-batches a step, stopped in the second step
    assert not np.array_equal(result.weights, start)


def test_a_diverging_training_says_so(small_training_program, small_dataset, start):
    start = np.full_like(start, np.nan)
    with pytest.raises(ConfigError, match="loss of step 1 is nan; lower the learning rate"):
        train(small_training_program, start, small_dataset, **OPTIONS)


def test_what_cannot_be_trained_is_refused(
    small_training_program, small_evaluation_program, small_dataset, start
):
    with pytest.raises(ConfigError, match="evaluation program"):
        train(small_evaluation_program, start, small_dataset, **OPTIONS)
    nothing = small_dataset.subset(np.array([], np.int64))
    with pytest.raises(ConfigError, match="empty"):
        train(small_training_program, start, nothing, **OPTIONS)
    with pytest.raises(ConfigError, match="batch size 0"):
        train(small_training_program, start, small_dataset, **OPTIONS | {"batch_size": 0})
    larger = dataclasses.replace(small_dataset, pixels=np.zeros((40, 1, 20, 20), np.float32))
    with pytest.raises(ConfigError, match="20x20"):
        train(small_training_program, start, larger, **OPTIONS)


def test_logits_cover_a_last_part_that_is_not_full(small_evaluation_program, small_dataset, start):
    found = logits(small_evaluation_program, start, small_dataset)
    model = build_model(small_evaluation_program.spec, seed=0)
    with torch.no_grad():
        expected = model(torch.from_numpy(small_dataset.images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    nothing = Dataset(small_dataset.images[:0], small_dataset.labels[:0], 10)
    with pytest.raises(ConfigError, match="empty"):
        accuracy(small_evaluation_program, start, nothing)


def test_images_kept_as_bytes_train_to_the_same_bits(small_training_program, small_dataset):
    bytes_ = np.rint(small_dataset.images * 255).astype(np.uint8)
    kept = dataclasses.replace(small_dataset, pixels=bytes_)
    floats = dataclasses.replace(small_dataset, pixels=bytes_.astype(np.float32) / np.float32(255))
    rng = np.random.default_rng(0)
    start = rng.normal(0, 0.05, small_training_program.layout.size).astype(np.float32)
    options = {"epochs": 1, "batch_size": 6, "learning_rate": 0.05, "seed": 0}
    one, other = (train(small_training_program, start, d, **options) for d in (kept, floats))
    assert one.weights.tobytes() == other.weights.tobytes()
    assert not np.array_equal(one.weights, start)
