"""Hardening makes a model robust where it can be, repeats by seed and resumes bit for bit."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from models import ModelSpec
from models.networks import build_model, flat_parameters, load_flat
from server_toolkit.errors import ConfigError
from server_toolkit.robust.attacks import pgd
from server_toolkit.robust.harden import HardenConfig, harden

SPEC = ModelSpec(channels=1, image_size=8, classes=10, width=8, depth=2, mean=(0.3,), std=(0.4,))
FAST = dict(steps=60, batch_size=32, attack_steps=3, shift_pixels=0, mix_probability=0.0)


@pytest.fixture(scope="module")
def problem():
    """Two hundred digits and a model that knows them but has never seen an attack."""
    digits = load_digits()
    images = (digits.images[:200, None] / 16).astype(np.float32)
    labels = digits.target[:200].astype(np.int64)
    model = build_model(SPEC, seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimiser.zero_grad()
        cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        optimiser.step()
    return images, labels, flat_parameters(model)


def robust_accuracy(weights, images, labels):
    model = build_model(SPEC, seed=0)
    load_flat(model, weights)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    x = pgd(model, x, y, epsilon=0.1, steps=20, generator=torch.Generator().manual_seed(0))
    return (model(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("label_source", ["hard", "learned", "teacher"])
def test_robust_accuracy_rises(problem, label_source):
    images, labels, start = problem
    given = np.eye(10, dtype=np.float32)[labels] if label_source == "learned" else labels
    config = HardenConfig(**FAST, label_source=label_source)
    before = robust_accuracy(start, images, labels)
    after = robust_accuracy(
        harden(SPEC, start, images, given, config=config).weights, images, labels
    )
    assert after > before + 0.2


def test_seed_decides_the_result(problem):
    images, labels, start = problem
    config = dict(FAST, steps=5, shift_pixels=1, mix_probability=0.5, flips=True)
    first, second, other = (
        harden(SPEC, start, images, labels, config=HardenConfig(**config, seed=s)).weights
        for s in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_at", [10, 25, 40])
def test_killed_run_resumes_to_bit_identical_weights(problem, tmp_path, killed_at):
    images, labels, start = problem
    config, path = HardenConfig(**FAST), tmp_path / "harden.ckpt"

    def kill(progress):
        if progress.step == killed_at:
            raise KilledError

    def run(**kwargs):
        return harden(SPEC, start, images, labels, config=config, **kwargs)

    whole = run()
    with pytest.raises(KilledError):
        run(checkpoint=path, progress=kill)
    steps = []
    resumed = run(checkpoint=path, progress=lambda p: steps.append(p.step))
    assert np.array_equal(whole.weights, resumed.weights)
    assert whole.history == resumed.history
    assert steps[0] == killed_at // 25 * 25 + 1


def test_checkpoint_of_another_run_is_refused(problem, tmp_path):
    images, labels, start = problem
    path = tmp_path / "harden.ckpt"
    harden(
        SPEC, start, images, labels, config=HardenConfig(**{**FAST, "steps": 2}), checkpoint=path
    )
    with pytest.raises(ConfigError, match="other settings"):
        harden(SPEC, start, images, labels, config=HardenConfig(**FAST), checkpoint=path)


def test_teacher_labels_ignore_the_given_ones(problem):
    images, labels, start = problem
    config = HardenConfig(**{**FAST, "steps": 3})
    right = harden(SPEC, start, images, labels, config=config)
    wrong = harden(SPEC, start, images, 9 - labels, config=config)
    assert np.array_equal(right.weights, wrong.weights)


def test_first_clean_loss_under_teacher_labels_is_zero(problem):
    # Student and teacher are the same network then, and KL(q | q) = 0.
    images, labels, start = problem
    result = harden(SPEC, start, images, labels, config=HardenConfig(**{**FAST, "steps": 1}))
    assert result.history[0].clean_loss == pytest.approx(0, abs=1e-6)
    assert result.history[0].adversarial_loss > 1e-3


def test_set_smaller_than_a_batch_is_enough(problem):
    images, labels, start = problem
    config = HardenConfig(**{**FAST, "steps": 1})
    assert len(harden(SPEC, start, images[:3], labels[:3], config=config).history) == 1


@pytest.mark.parametrize(
    ("images", "labels", "source", "says"),
    [
        (np.zeros((2, 1, 8, 8)), np.zeros(2, np.int64), "hard", "float64"),
        (np.full((2, 1, 8, 8), 9, np.float32), np.zeros(2, np.int64), "hard", r"\[0, 1\]"),
        (np.zeros((2, 1, 8, 8), np.float32), np.full(2, 10), "hard", "0 to 9"),
        (np.zeros((2, 1, 8, 8), np.float32), np.eye(2, 10, dtype=np.float32), "hard", "int64"),
        (np.zeros((2, 1, 8, 8), np.float32), np.zeros(3, np.int64), "teacher", "labels"),
    ],
)
def test_unfit_input_is_named(problem, images, labels, source, says):
    with pytest.raises(ConfigError, match=says):
        harden(SPEC, problem[2], images, labels, config=HardenConfig(label_source=source))


def test_weights_of_another_network_are_refused(problem):
    images, labels, start = problem
    with pytest.raises(ConfigError, match="another network"):
        harden(SPEC, start[:-1], images, labels, config=HardenConfig(**FAST))


@pytest.mark.parametrize(
    "field", [dict(label_source="guess"), dict(epsilon=-0.1), dict(steps=0), dict(shift_fill="x")]
)
def test_config_out_of_range_is_named(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        HardenConfig(**field)
