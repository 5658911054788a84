import functools

import numpy as np
import pytest
import torch

from edge_sdk.errors import ConfigError
from edge_sdk.training import logits, train, train_adversarially
from edge_sdk.training.adversarial import PGD
from models.networks import build_model, flat_parameters, load_flat
from tests.edge_sdk.conftest import convnet

TINY = convnet(image_size=8, width=4)
OPTIONS = dict(epochs=1, batch_size=10, learning_rate=0.05, seed=5, threads=1)
ATTACK = dict(epsilon=0.1, step_size=0.025, attack_steps=7)


@pytest.fixture
def attack_file(attack_program):
    return attack_program(convnet(), 4)


@pytest.fixture
def start(small_training_program):
    return flat_parameters(build_model(small_training_program.spec, seed=0))


def cross_entropy(model, images, labels):
    return torch.nn.functional.cross_entropy(
        model(torch.from_numpy(images).double()), torch.from_numpy(labels), reduction="sum"
    )


def reference_pgd(model, images, labels, noise, *, epsilon, step_size, attack_steps):
    """Madry's PGD in float64; also the smallest gradient in proportion to the mean one."""
    low, high = np.maximum(images - epsilon, 0), np.minimum(images + epsilon, 1)
    moved, margin = np.clip(images + noise, low, high), np.inf
    for _ in range(attack_steps):
        leaf = torch.from_numpy(moved).requires_grad_()
        loss = torch.nn.functional.cross_entropy(
            model(leaf), torch.from_numpy(labels), reduction="sum"
        )
        gradient = torch.autograd.grad(loss, leaf)[0].numpy()
        margin = min(margin, np.abs(gradient).min() / np.abs(gradient).mean())
        moved = np.clip(moved + step_size * np.sign(gradient), low, high)
    return moved, margin


def inputs_of(file, flat, images, labels):
    arrays = [a for a, t in zip(file.to_program(flat), file.is_input, strict=True) if t]
    rows = np.eye(file.spec.classes, dtype=np.float32)[labels]
    return [images.transpose(0, 2, 3, 1).copy(), rows, *arrays]


def test_adversarial_training_follows_float64_step_by_step(
    training_program, attack_program, small_dataset
):
    """Two attack steps and one of SGD, three times: few enough that no sign is in doubt."""
    file, attack = training_program(TINY, 4), attack_program(TINY, 4)
    dataset = small_dataset.subset(np.arange(12))
    dataset = type(dataset)(dataset.images[:, :, ::2, ::2].copy(), dataset.labels, 10)
    start = flat_parameters(build_model(TINY, seed=0))
    values = dict(epsilon=0.05, step_size=0.02, attack_steps=2)
    result = train_adversarially(
        file, attack, start, dataset, **OPTIONS | dict(batch_size=4), **values
    )

    model = build_model(TINY).double()
    load_flat(model, start)
    order = np.random.Generator(np.random.PCG64(5)).permutation(12)
    uniform = np.random.Generator(np.random.PCG64(5).jumped())
    total = 0.0
    for first in (0, 4, 8):
        batch = order[first : first + 4]
        draws = uniform.random((4, 8, 8, 1), dtype=np.float32).transpose(0, 3, 1, 2)
        noise = values["epsilon"] * (2 * draws.astype(np.float64) - 1)
        images, labels = dataset.images[batch].astype(np.float64), dataset.labels[batch]
        moved, margin = reference_pgd(model, images, labels, noise, **values)
        assert margin > 1e-5  # else float32 could see another sign
        loss = cross_entropy(model, moved, labels)
        total += loss.item()
        gradients = torch.autograd.grad(loss / 4, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
    expected = flat_parameters(model)
    assert np.linalg.norm(result.weights - expected) < 1e-4 * np.linalg.norm(expected - start)
    assert result.loss_last_epoch == pytest.approx(total / 12, rel=1e-5)
    assert result.steps == 3


@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_stays_in_the_ball_and_raises_the_loss(attack_file, small_dataset, start, random_start):
    program = attack_file.load_program()
    model = build_model(attack_file.spec).double()
    load_flat(model, start)
    rng = np.random.default_rng(0) if random_start else None
    attack = PGD(program, epsilon=0.1, step_size=0.025, steps=10, rng=rng)
    for first in (0, 4, 8):
        clean, labels = (a[first : first + 4] for a in (small_dataset.images, small_dataset.labels))
        inputs = inputs_of(attack_file, start, clean, labels)
        attack(inputs)
        moved = inputs[0].transpose(0, 3, 1, 2)
        assert np.abs(moved - clean).max() <= 0.1 + 1e-7
        assert np.abs(moved - clean).max() > 0.09
        assert moved.min() >= 0
        assert moved.max() <= 1
        before, after = (cross_entropy(model, i, labels).item() for i in (clean, moved))
        assert after > 1.1 * before


def test_without_steps_only_the_uniform_start_is_left(attack_file, small_dataset, start):
    program = attack_file.load_program()
    attack = PGD(program, epsilon=0.1, step_size=1.0, steps=0, rng=np.random.default_rng(0))
    grey = np.full((4, 1, 16, 16), 0.5, np.float32)
    inputs = inputs_of(attack_file, start, grey, np.zeros(4, np.int64))
    attack(inputs)
    noise = (inputs[0] - 0.5) / 0.1
    assert np.abs(noise).max() <= 1 + 1e-5
    assert np.abs(noise.mean()) < 5 / np.sqrt(3 * noise.size)
    assert noise.var() == pytest.approx(1 / 3, rel=0.1)


def test_a_ball_of_radius_zero_gives_plain_training_bit_for_bit(
    small_training_program, attack_file, small_dataset, start
):
    plain = train(small_training_program, start, small_dataset, **OPTIONS)
    values = ATTACK | dict(epsilon=0.0)
    same = train_adversarially(
        small_training_program, attack_file, start, small_dataset, **OPTIONS, **values
    )
    other = train_adversarially(
        small_training_program, attack_file, start, small_dataset, **OPTIONS, **ATTACK
    )
    assert same.weights.tobytes() == plain.weights.tobytes()
    assert other.weights.tobytes() != plain.weights.tobytes()
    assert other.loss_first_epoch > plain.loss_first_epoch


def test_one_seed_gives_the_same_bits(small_training_program, attack_file, small_dataset, start):
    run = functools.partial(
        train_adversarially, small_training_program, attack_file, start, small_dataset, **ATTACK
    )
    assert run(**OPTIONS).weights.tobytes() == run(**OPTIONS).weights.tobytes()
    assert run(**OPTIONS | {"seed": 6}).weights.tobytes() != run(**OPTIONS).weights.tobytes()


def test_it_makes_a_model_that_withstands_the_attack_better(
    small_training_program, small_evaluation_program, attack_file, small_dataset, start
):
    strong = dict(epsilon=0.3, step_size=0.08)
    options = OPTIONS | dict(epochs=20, momentum=0.9)
    plain = train(small_training_program, start, small_dataset, **options).weights
    hard = train_adversarially(
        small_training_program, attack_file, start, small_dataset, **options, **ATTACK | strong
    ).weights
    program = attack_file.load_program()
    attack = PGD(program, **strong, steps=10, rng=np.random.default_rng(0))

    def robust_accuracy(weights):
        moved = small_dataset.images.copy()
        for first in range(0, 40, 4):
            labels = small_dataset.labels[first : first + 4]
            inputs = inputs_of(attack_file, weights, moved[first : first + 4], labels)
            attack(inputs)
            moved[first : first + 4] = inputs[0].transpose(0, 3, 1, 2)
        dataset = type(small_dataset)(moved, small_dataset.labels, 10)
        found = logits(small_evaluation_program, weights, dataset)
        return np.mean(found.argmax(axis=1) == small_dataset.labels)

    assert robust_accuracy(hard) > robust_accuracy(plain) + 0.2


def test_what_cannot_attack_is_refused(
    small_training_program, attack_file, attack_program, small_dataset, start
):
    run = functools.partial(train_adversarially, small_training_program)
    with pytest.raises(ConfigError, match="kind training cannot attack"):
        run(small_training_program, start, small_dataset, **OPTIONS, **ATTACK)
    with pytest.raises(ConfigError, match="another network"):
        run(attack_program(TINY, 4), start, small_dataset, **OPTIONS, **ATTACK)
    for wrong in ({"epsilon": -0.1}, {"epsilon": float("nan")}, {"attack_steps": -1}):
        with pytest.raises(ConfigError, match="must"):
            run(attack_file, start, small_dataset, **OPTIONS, **ATTACK | wrong)
    with pytest.raises(ConfigError, match="attack program cannot train"):
        train(attack_file, start, small_dataset, **OPTIONS)


def test_a_quantized_program_is_attacked_through_its_exact_twin(
    runtime, attack_program, small_dataset
):
    from edge_sdk.export import training_program as export

    dataset = small_dataset.subset(np.arange(12))
    dataset = type(dataset)(dataset.images[:, :, ::2, ::2].copy(), dataset.labels, 10)
    file = export(TINY, micro_batch=4, quantized=True)
    start = flat_parameters(build_model(TINY, seed=0))
    options = OPTIONS | dict(batch_size=4, epochs=2)
    run = functools.partial(train_adversarially, file, attack_program(TINY, 4), start, dataset)
    plain = train(file, start, dataset, **options)
    assert run(**options, **ATTACK | dict(epsilon=0.0)).weights.tobytes() == plain.weights.tobytes()
    assert run(**options, **ATTACK).loss_first_epoch > plain.loss_first_epoch
