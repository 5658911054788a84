"""Distillation lowers the matching loss, repeats by seed, resumes bit for bit and gives up well."""

import numpy as np
import pytest

from models import ModelSpec, layout_of
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.engine import distill
from server_toolkit.distill.initial_images import ServerSet, initial_images
from server_toolkit.distill.segments import Trajectories
from server_toolkit.errors import ConfigError, DistillationError

from .conftest import SPEC

FAST = dict(iterations=45, images_per_class=2, batch_size=4, student_steps=3, last_round=None)


def same(first, second):
    return (
        np.array_equal(first.images, second.images)
        and np.array_equal(first.labels, second.labels)
        and first.step_size == second.step_size
    )


@pytest.mark.parametrize("segment", ["fleet", "local", "device"])
def test_matching_loss_falls(trajectories, segment):
    losses = []
    config = DistillConfig(**FAST, segment=segment)
    proxy = distill(
        trajectories, SPEC, config=config, progress=lambda p: losses.append(p.match_loss)
    )
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    assert proxy.metadata["match_loss"] == pytest.approx(np.mean(losses[-20:]))
    assert proxy.images.shape == (6, 1, 8, 8)
    assert proxy.hard_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_seed_decides_the_result(trajectories):
    runs = [distill(trajectories, SPEC, config=DistillConfig(**FAST, seed=s)) for s in (4, 4, 5)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


class KilledError(Exception):
    pass


EVERYTHING = dict(
    segments_per_iteration=2,
    student_momentum=0.5,
    augmentation=("crop", "color"),
    parameterisation="fourier",
    image_average=0.9,
    label_start="teacher",
    teacher_points=2,
    start="noise+structured",
    window="auto",
    curriculum_rounds=1,
    skip_above=1.5,
)


@pytest.mark.parametrize(("settings", "killed_at"), [({}, 20), ({}, 33), (EVERYTHING, 28)])
def test_killed_run_resumes_to_bit_identical_images(trajectories, tmp_path, settings, killed_at):
    def kill(progress):
        if progress.iteration == killed_at:
            raise KilledError

    config = DistillConfig(**FAST, **settings)
    path = tmp_path / "distill.ckpt"
    whole = distill(trajectories, SPEC, config=config)
    with pytest.raises(KilledError):
        distill(trajectories, SPEC, config=config, checkpoint=path, progress=kill)
    iterations = []
    resumed = distill(
        trajectories,
        SPEC,
        config=config,
        checkpoint=path,
        progress=lambda p: iterations.append(p.iteration),
    )
    assert same(whole, resumed)
    assert iterations[0] == (killed_at - 1) // 20 * 20 + 1  # nothing earlier is done again
    assert same(whole, distill(trajectories, SPEC, config=config, checkpoint=path))


def test_checkpoint_of_another_run_is_refused(trajectories, tmp_path):
    path = tmp_path / "distill.ckpt"
    distill(trajectories, SPEC, config=DistillConfig(**FAST), checkpoint=path)
    with pytest.raises(ConfigError, match="other settings"):
        distill(trajectories, SPEC, config=DistillConfig(**FAST, seed=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="damaged"):
        distill(trajectories, SPEC, config=DistillConfig(**FAST), checkpoint=path)


def test_run_that_never_is_finite_is_an_error(trajectories):
    far = Trajectories({0: trajectories.global_path[0], 1: trajectories.global_path[1] * 1e30})
    with pytest.raises(DistillationError, match="not finite"):
        distill(far, SPEC, config=DistillConfig(**FAST))


def test_labels_stay_when_they_are_not_learned(trajectories):
    proxy = distill(trajectories, SPEC, config=DistillConfig(**FAST, learn_labels=False))
    assert np.allclose(proxy.labels.max(axis=1), 0.95 + 0.05 / 3)
    assert np.array_equal(proxy.labels.argmax(axis=1), proxy.hard_labels)


def test_server_set_start_stays_near_the_real_images(trajectories):
    real = ServerSet(
        np.random.default_rng(1).random((6, 1, 8, 8), np.float32), np.repeat(np.arange(3), 2)
    )
    config = DistillConfig(**{**FAST, "iterations": 1}, start="server_set")
    proxy = distill(trajectories, SPEC, config=config, server_set=real)
    nearest = [np.abs(real.images - image).max(axis=(1, 2, 3)).min() for image in proxy.images]
    # One Adam step, and the curve that sets the tones back.
    assert max(nearest) <= 1.2 * config.image_learning_rate


def test_without_iterations_the_set_is_its_start(trajectories):
    config = DistillConfig(**{**FAST, "iterations": 0})
    proxy = distill(trajectories, SPEC, config=config)
    start, labels = initial_images(config.start, SPEC, images_per_class=2, seed=config.seed)
    assert np.array_equal(proxy.images, start)
    assert np.array_equal(proxy.labels.argmax(axis=1), labels)
    assert proxy.metadata["match_loss"] is None


def test_lineage_names_segments_devices_and_settings(trajectories):
    config = DistillConfig(**FAST, segment="local", first_round=1)
    proxy = distill(trajectories, SPEC, config=config, ledger_id="ledger-7")
    assert proxy.metadata["ledger_id"] == "ledger-7"
    assert proxy.metadata["segments"] == ["local a 1", "local a 2"]
    assert proxy.metadata["devices"] == ["a"]
    assert proxy.metadata["config"] == config.to_dict()


def test_weights_of_another_network_are_refused(trajectories):
    other = ModelSpec(channels=1, image_size=8, classes=4, depth=2, mean=(0.3,), std=(0.4,))
    with pytest.raises(DistillationError, match=str(layout_of(other).size)):
        distill(trajectories, other, config=DistillConfig(**FAST))


@pytest.mark.parametrize(
    "field",
    [
        dict(start="stars"),
        dict(start="noise+noise"),
        dict(images_per_class=1, start="noise+structured"),
        dict(iterations=-1),
        dict(seed=-1),
        dict(initial_step_size=0.0),
        dict(window="middle"),
        dict(augmentation=("blur",)),
        dict(student_momentum=1.0),
        dict(curriculum_until=0.0),
        dict(skip_above=0.0),
    ],
)
def test_config_out_of_range_is_named(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        DistillConfig(**field)
