"""Hardening on the devices' runtime is what it is in torch, and only taken where it pays."""

import dataclasses
import logging
import sys

import numpy as np
import pytest
import torch

from models import ModelSpec
from models.networks import build_model, flat_parameters, load_flat
from server_toolkit.errors import ConfigError
from server_toolkit.robust import native_engine
from server_toolkit.robust.evaluation import judge
from server_toolkit.robust.harden import HardenConfig, harden
from server_toolkit.robust.native_engine import attack_programs, hardening_programs, micro_batch

SPEC = ModelSpec(channels=1, image_size=8, classes=10, width=8, depth=2, mean=(0.3,), std=(0.4,))
LARGE = ModelSpec(channels=1, image_size=28, classes=10, width=16, mean=(0.3,), std=(0.4,))
CONFIG = HardenConfig(
    steps=30, batch_size=20, attack_steps=2, start="scratch", learning_rate=0.05, seed=3
)


@pytest.fixture
def native(monkeypatch):
    """Every run that can be is taken to be worth an export."""
    monkeypatch.setattr(native_engine, "WORTH_AN_EXPORT", 0)


def run(config=CONFIG, **kwargs):
    rng = np.random.default_rng(0)
    images = rng.random((45, 1, 8, 8), dtype=np.float32)
    start = flat_parameters(build_model(SPEC, seed=0))
    return harden(SPEC, start, images, rng.integers(10, size=45), config=config, **kwargs)


METHODS = [
    {},
    dict(objective="pgd_at", label_source="hard"),
    dict(objective="trades"),
    dict(objective="mart"),
    dict(objective="fast"),
    dict(awp_gamma=0.01),
    dict(holdout_share=0.2, holdout_every=2, patience=100, averaging="ema"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(map(str, m.values())) or "kl")
def test_a_few_steps_end_where_torch_ends(monkeypatch, method):
    config = dataclasses.replace(CONFIG, **method, steps=4)
    in_torch = run(config)
    monkeypatch.setattr(native_engine, "WORTH_AN_EXPORT", 0)
    assert hardening_programs(SPEC, config, "cpu") is not None
    ours = run(config)
    moved = np.abs(in_torch.weights - flat_parameters(build_model(SPEC, seed=3))).max()
    # Rounding alone, until it turns the sign of a pixel's gradient.
    assert np.abs(ours.weights - in_torch.weights).max() < 1e-3 * moved
    assert not np.array_equal(ours.weights, in_torch.weights)  # or it was torch that computed
    for entry, expected in zip(ours.history, in_torch.history, strict=True):
        assert entry.adversarial_loss == pytest.approx(expected.adversarial_loss, abs=1e-4)
        assert entry.clean_loss == pytest.approx(expected.clean_loss, abs=1e-4)
        assert entry.held_out_accuracy == expected.held_out_accuracy


class KilledError(Exception):
    pass


@pytest.mark.parametrize("method", [{}, METHODS[-1]], ids=["kl", "holdout"])
def test_a_killed_run_resumes_to_bit_identical_weights(native, tmp_path, method):
    config, path = dataclasses.replace(CONFIG, **method), tmp_path / "harden.ckpt"

    def kill(progress):
        if progress.step == 27:
            raise KilledError

    whole = run(config)
    with pytest.raises(KilledError):
        run(config, checkpoint=path, progress=kill)
    steps = []
    resumed = run(config, checkpoint=path, progress=lambda p: steps.append(p.step))
    assert steps[0] == 26
    assert np.array_equal(whole.weights, resumed.weights)
    assert whole.history == resumed.history


def test_a_checkpoint_of_the_other_engine_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "harden.ckpt"
    run(checkpoint=path)
    monkeypatch.setattr(native_engine, "WORTH_AN_EXPORT", 0)
    with pytest.raises(ConfigError, match="other settings"):
        run(checkpoint=path)


def test_torch_stays_on_a_gpu_for_short_runs_and_for_free(monkeypatch):
    monkeypatch.setattr(native_engine, "_export", lambda *_: "programs")
    config = HardenConfig()
    assert hardening_programs(LARGE, config, "cpu") == "programs"
    assert hardening_programs(LARGE, config, "cuda:0") is None
    assert hardening_programs(LARGE, HardenConfig(steps=4), "cpu") is None
    assert hardening_programs(LARGE, HardenConfig(objective="free", steps=10**6), "cpu") is None


@pytest.mark.parametrize("attacks", ["pgd,cw_linf", "autoattack"])
def test_a_model_is_judged_as_in_torch(monkeypatch, attacks):
    rng = np.random.default_rng(2)
    images = rng.random((30, 1, 8, 8), dtype=np.float32)
    labels = rng.integers(10, size=30)
    model = build_model(SPEC, seed=0)
    load_flat(model, run(dataclasses.replace(CONFIG, steps=200, label_source="hard")).weights)
    labels[:20] = model(torch.from_numpy(images[:20])).argmax(1)
    settings = dict(epsilon=0.02, attacks=attacks, square_queries=50)
    in_torch = judge(model, images, labels, **settings)
    monkeypatch.setattr(native_engine, "WORTH_AN_EXPORT", 0)
    assert attack_programs(SPEC, 1, "cpu") is not None
    ours = judge(model, images, labels, **settings)
    assert 0 < ours.robust.sum() < in_torch.correct("clean").sum()
    for outcome in in_torch.outcomes:
        np.testing.assert_array_equal(ours.correct(outcome.attack), outcome.correct)


def test_torch_judges_on_a_gpu_few_images_and_other_peoples_models(native, monkeypatch):
    monkeypatch.setattr(native_engine, "_export", lambda *_: pytest.fail("exported"))
    assert attack_programs(SPEC, 10**9, "cuda:0") is None
    images = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    labels = np.arange(4)
    judge(torch.nn.Sequential(build_model(SPEC, seed=0)), images, labels, epsilon=0.1)
    monkeypatch.setattr(native_engine, "WORTH_AN_EXPORT", 1e9)
    judge(build_model(SPEC, seed=0), images, labels, epsilon=0.1)


def test_torch_stays_where_there_is_no_executorch(native, monkeypatch, caplog):
    native_engine._export.cache_clear()
    monkeypatch.setitem(sys.modules, "edge_sdk.export", None)  # cannot be imported
    config = dataclasses.replace(CONFIG, steps=1)
    with caplog.at_level(logging.INFO):
        run(config)
        run(config)
    native_engine._export.cache_clear()
    lines = [record.message for record in caplog.records if "in torch" in record.message]
    assert len(lines) == 1  # not at every one of a benchmark's hundred runs
    assert "executorch" in lines[0]


@pytest.mark.parametrize(
    ("width", "batch_size", "expected"),
    [(16, 50, 25), (16, 20, 20), (16, 1, 1), (128, 50, 10), (128, 64, 8)],
)
def test_a_batch_is_divided_with_little_padding(width, batch_size, expected):
    spec = dataclasses.replace(LARGE, width=width)
    assert micro_batch(spec, batch_size) == expected
