"""Hardening makes a model robust where it can be, repeats by seed and resumes bit for bit."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from edge_sdk.training import Dataset
from models import ModelSpec
from models.networks import build_model, flat_parameters, load_flat
from server_toolkit.errors import ConfigError, HardeningError
from server_toolkit.robust.attacks import pgd
from server_toolkit.robust.harden import HardenConfig, harden
from server_toolkit.robust.harden_batches import Batches
from server_toolkit.robust.harden_labels import Teachers
from server_toolkit.robust.harden_selection import ATTACK_STEPS, Selection, split
from server_toolkit.robust.objectives.inner import Ascent

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


@pytest.mark.parametrize(
    "method",
    [
        dict(objective="pgd_at"),
        dict(objective="trades"),
        dict(objective="mart"),
        dict(objective="fast"),
        dict(objective="free", steps=120),
        dict(objective="trades", awp_gamma=0.01),
        dict(averaging="ema"),
        dict(averaging="swa"),
        dict(epsilon_warmup=0.5),
        dict(teacher_temperature=2.0),
        dict(holdout_share=0.2, holdout_every=10),
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_every_method_makes_the_model_robust(problem, method):
    images, labels, start = problem
    config = HardenConfig(**{**FAST, "learning_rate": 0.05, **method})
    hardened = harden(SPEC, start, images, labels, config=config).weights
    before, after = (robust_accuracy(w, images, labels) for w in (start, hardened))
    assert after > before + 0.2


def test_the_default_is_the_textbook_loop(problem):
    # SGD on KL(q | f(x')) + KL(q | f(x)), x' by PGD, q from the teacher: written down once more.
    images, labels, start = problem
    config = HardenConfig(**{**FAST, "steps": 6, "shift_pixels": 1})
    batches = Batches(torch.from_numpy(images), torch.zeros(200, 10), None, config)
    student, teacher = build_model(SPEC, seed=0), build_model(SPEC, seed=0)
    load_flat(student, start)
    load_flat(teacher, start)
    sgd = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for step in range(6):
        x, _, generator = batches.draw(step)
        q = teacher(x).softmax(1).detach()
        attacked = pgd(student, x, q, epsilon=0.1, steps=3, generator=generator)
        loss = sum(
            kl_div(log_softmax(student(inputs), 1), q, reduction="batchmean")
            for inputs in (attacked, x)
        )
        sgd.param_groups[0]["lr"] = 0.02 * min(1, 2 * (1 - step / 6))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    ours = harden(SPEC, start, images, labels, config=config).weights
    np.testing.assert_allclose(ours, flat_parameters(student), atol=2e-5)
    assert np.abs(ours - start).max() > 1e-3


def test_free_training_replays_every_batch_as_often_as_asked(problem, monkeypatch):
    images, labels, start = problem
    drawn, draw = [], Batches.draw
    monkeypatch.setattr(Batches, "draw", lambda self, n: drawn.append(n) or draw(self, n))
    config = HardenConfig(**{**FAST, "steps": 7}, objective="free", free_replays=3)
    harden(SPEC, start, images, labels, config=config)
    assert drawn == [0, 1, 2]


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


@pytest.mark.parametrize(
    ("killed_at", "method"),
    [
        (10, {}),
        (25, {}),
        (40, dict(averaging="swa", swa_start=0.3, holdout_share=0.2, holdout_every=7)),
        (58, dict(objective="free", averaging="ema", free_replays=4, epsilon_warmup=1.0)),
        (40, dict(objective="mart", awp_gamma=0.01, real_share=0.3)),
    ],
)
def test_killed_run_resumes_to_bit_identical_weights(problem, tmp_path, killed_at, method):
    images, labels, start = problem
    config, path = HardenConfig(**{**FAST, **method}), tmp_path / "harden.ckpt"
    real = Dataset(images[150:], labels[150:], 10)

    def kill(progress):
        if progress.step == killed_at:
            raise KilledError

    def run(**kwargs):
        return harden(SPEC, start, images[:150], labels[:150], real=real, config=config, **kwargs)

    whole = run()
    with pytest.raises(KilledError):
        run(checkpoint=path, progress=kill)
    steps = []
    resumed = run(checkpoint=path, progress=lambda p: steps.append(p.step))
    assert np.array_equal(whole.weights, resumed.weights)
    assert whole.history == resumed.history
    assert whole.best_step == resumed.best_step
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
        (np.zeros((2, 1, 8, 8), np.float32), np.ones((2, 10), np.float32), "learned", "sum to 1"),
        (
            np.zeros((2, 1, 8, 8), np.float32),
            np.full((2, 10), np.nan, np.float32),
            "learned",
            "sum to 1",
        ),
    ],
)
def test_unfit_input_is_named(problem, images, labels, source, says):
    with pytest.raises(ConfigError, match=says):
        harden(SPEC, problem[2], images, labels, config=HardenConfig(label_source=source))


def test_weights_of_another_network_are_refused(problem):
    images, labels, start = problem
    with pytest.raises(ConfigError, match="another network"):
        harden(SPEC, start[:-1], images, labels, config=HardenConfig(**FAST))


def test_an_ensemble_of_the_teacher_alone_is_the_teacher(problem):
    images, labels, start = problem
    config = {**FAST, "steps": 3}
    one = harden(SPEC, start, images, labels, config=HardenConfig(**config))
    for teachers in (None, start, [start], [start, start]):
        again = harden(
            SPEC,
            start,
            images,
            labels,
            config=HardenConfig(**config, label_source="ensemble"),
            teacher=teachers,
        )
        np.testing.assert_allclose(again.weights, one.weights, atol=1e-6)


def test_every_teacher_of_an_ensemble_counts(problem):
    images, labels, start = problem
    config = HardenConfig(**{**FAST, "steps": 3}, label_source="ensemble")
    other = flat_parameters(build_model(SPEC, seed=5))
    alone = harden(SPEC, start, images, labels, config=config, teacher=[start])
    both = harden(SPEC, start, images, labels, config=config, teacher=[start, other])
    assert np.abs(alone.weights - both.weights).max() > 1e-4


@pytest.mark.parametrize("teachers", [0, 2])
def test_one_teacher_is_asked_for_and_another_number_given(problem, teachers):
    images, labels, start = problem
    with pytest.raises(ConfigError, match=f"{teachers} teachers"):
        harden(SPEC, start, images, labels, config=HardenConfig(**FAST), teacher=[start] * teachers)


def test_from_scratch_the_start_is_only_the_teacher(problem):
    images, labels, start = problem
    config = {**FAST, "steps": 1, "start": "scratch", "learning_rate": 0.0}
    result = harden(SPEC, start, images, labels, config=HardenConfig(**config, seed=7))
    assert np.array_equal(result.weights, flat_parameters(build_model(SPEC, seed=7)))
    assert result.history[0].clean_loss > 0.5  # far from its teacher


def test_real_images_are_mixed_in_and_the_share_counts(problem):
    images, labels, start = problem
    own = Dataset((255 * images[100:]).astype(np.uint8), labels[100:], 10)
    weights = [
        harden(
            SPEC,
            start,
            images[:100],
            labels[:100],
            real=real,
            config=HardenConfig(**{**FAST, "steps": 2}, real_share=share),
        ).weights
        for real, share in ((None, None), (own, None), (own, 0.0), (own, 0.5))
    ]
    alone, repeated, none, half = weights
    assert np.array_equal(alone, none)
    assert not np.array_equal(alone, repeated)
    assert not np.array_equal(repeated, half)


def test_a_run_without_progress_stops_early_and_returns_its_best_weights(problem):
    images, labels, start = problem
    config = HardenConfig(
        **{**FAST, "steps": 2000, "learning_rate": 0.3},
        holdout_share=0.1,
        holdout_every=2,
        patience=3,
    )
    result = harden(SPEC, start, images, labels, config=config)
    measured = [(e.held_out_accuracy, e.step) for e in result.history if e.step % 2 == 0]
    assert len(result.history) == result.best_step + 2 * 3 < 2000
    best = max(accuracy for accuracy, _ in measured)
    assert (best, result.best_step) in measured
    # The weights that came back are those: measured again, they have that accuracy.
    _, held_out = split(len(images), config)
    model = build_model(SPEC, seed=0)
    load_flat(model, start)
    x = torch.from_numpy(images)[held_out]
    again = Selection(x, Teachers([model], 1.0)(x), config, Ascent(ATTACK_STEPS))
    load_flat(model, result.weights)
    assert again.measure(model, step=1) == best


def test_average_is_what_comes_back(problem):
    images, labels, start = problem
    last, mean = (
        harden(
            SPEC, start, images, labels, config=HardenConfig(**{**FAST, "steps": 8}, averaging=kind)
        )
        for kind in ("none", "swa")
    )
    assert last.history == mean.history  # averaging does not touch training
    assert 0 < np.abs(last.weights - mean.weights).max() < np.abs(last.weights - start).max()


def test_history_tells_epsilon_and_learning_rate(problem):
    images, labels, start = problem
    config = HardenConfig(**{**FAST, "steps": 4}, epsilon_warmup=1.0)
    history = harden(SPEC, start, images, labels, config=config).history
    assert [entry.epsilon for entry in history] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert [entry.learning_rate for entry in history] == pytest.approx([0.02, 0.02, 0.02, 0.01])


def test_divergence_ends_in_a_message(problem):
    images, labels, start = problem
    config = HardenConfig(**{**FAST, "learning_rate": 100.0, "weight_decay": 1.0})
    with pytest.raises(HardeningError, match=r"diverged.*learning_rate"):
        harden(SPEC, start, images, labels, config=config)


def test_divergence_in_the_last_step_is_not_returned(problem):
    images, labels, start = problem
    broken = start.copy()
    broken[-1] = 5e36  # the losses are finite, and a hundredfold step no more
    config = HardenConfig(
        **{**FAST, "steps": 1, "learning_rate": 100.0, "weight_decay": 1.0, "epsilon": 0.0},
        label_source="hard",
    )
    with pytest.raises(HardeningError, match="last step"):
        harden(SPEC, broken, images, labels, config=config)
