"""What one iteration does with several segments, skipped ones, averages and ranks."""

import dataclasses

import numpy as np
import pytest
import torch

from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.engine import distill, segments_of
from server_toolkit.distill.initial_images import initial_images
from server_toolkit.distill.iteration import (
    Run,
    current_images,
    initial_state,
    iterate,
    network_of,
    parameterisation_of,
)
from server_toolkit.distill.label_start import last_points, smoothed_labels, teacher_labels
from server_toolkit.distill.ranks import Ranks

from .conftest import SPEC

SMALL = DistillConfig(
    iterations=10, images_per_class=2, batch_size=4, student_steps=2, last_round=None
)


def run_and_state(trajectories, **settings):
    config = dataclasses.replace(SMALL, **settings)
    run = Run(
        config,
        network_of(config, SPEC, device="cpu"),
        segments_of(trajectories, SPEC, config),
        parameterisation_of(config, SPEC),
    )
    start, labels = initial_images(config.start, SPEC, images_per_class=2, seed=0)
    return run, initial_state(run, torch.from_numpy(start), smoothed_labels(labels, 3))


def first_moments(state):
    """Return Adam's first moment over 1 - β1: after one iteration, the gradient."""
    return {name: value / (1 - 0.9) for name, value in state.first_moments.items()}


class Listening(Ranks):
    """Keeps what the segments of the last iteration gave: loss, step, image, label gradients."""

    def gather(self, rows):
        object.__setattr__(self, "rows", rows)
        return rows


def test_the_gradient_of_several_segments_is_the_mean_of_theirs(trajectories):
    run, state = run_and_state(trajectories, segments_per_iteration=3)
    ranks = Listening()
    matches, _ = iterate(state, dataclasses.replace(run, ranks=ranks))
    assert len({match.segment for match in matches}) > 1
    assert [match.match_loss for match in matches] == ranks.rows[:, 0].tolist()

    mean = sum(ranks.rows[:, 1:]) / 3
    found = first_moments(state)
    flat = torch.cat([found[n].flatten() for n in ("log_step", "images", "label_logits")])
    assert torch.allclose(flat, mean, rtol=1e-4, atol=1e-7)


class Half(Ranks):
    """One of two ranks in this process: takes the other's rows from where it left them."""

    def __init__(self, rank, shared):
        super().__init__(rank, 2)
        object.__setattr__(self, "shared", shared)

    def gather(self, rows):
        self.shared[self.rank] = rows
        return torch.cat([self.shared.get(rank, rows) for rank in range(2)])


def test_two_ranks_share_the_segments_and_get_the_bits_of_one(trajectories):
    run, alone = run_and_state(trajectories, segments_per_iteration=4)
    matches, _ = iterate(alone, run)
    shared = {}
    states = []
    for rank in (1, 0):  # rank 1 leaves its rows for rank 0
        run, state = run_and_state(trajectories, segments_per_iteration=4)
        found, _ = iterate(state, dataclasses.replace(run, ranks=Half(rank, shared)))
        states.append(state)
    assert [len(rows) for rows in shared.values()] == [2, 2]
    assert found == matches
    for name, value in alone.values.items():
        assert torch.equal(value, states[1].values[name])


def test_segments_that_cannot_be_shared_evenly_are_an_error():
    with pytest.raises(ValueError, match="multiple"):
        Ranks(0, 2).share(3)


def test_a_segment_above_the_threshold_does_not_count(trajectories):
    run, state = run_and_state(trajectories, segments_per_iteration=4)
    matches, _ = iterate(state, run)
    losses = sorted(match.match_loss for match in matches)
    threshold = (losses[1] + losses[2]) / 2

    run, state = run_and_state(trajectories, segments_per_iteration=4, skip_above=threshold)
    matches, _ = iterate(state, run)
    assert sum(match.skipped for match in matches) == 2
    assert all(match.skipped == (match.match_loss > threshold) for match in matches)

    run, state = run_and_state(trajectories, segments_per_iteration=4, skip_above=losses[0] / 2)
    before = state.values["images"].clone()
    iterate(state, run)
    assert torch.equal(state.values["images"], before)
    assert state.iteration == 1


def test_averaged_images_are_the_weighted_mean_of_what_was_seen(trajectories):
    run, state = run_and_state(trajectories, image_average=0.5)
    seen = []
    for _ in range(3):
        iterate(state, run)
        seen.append(state.values["images"].clone())
    # Weights 1/8, 1/4, 1/2 of the three, divided by their sum.
    expected = (seen[0] + 2 * seen[1] + 4 * seen[2]) / 7
    assert np.allclose(current_images(state, run), expected.numpy(), atol=1e-6)


def test_a_curriculum_opens_the_later_rounds_later(trajectories):
    rounds = []
    config = dataclasses.replace(
        SMALL, iterations=60, student_steps=1, curriculum_rounds=1, curriculum_until=0.9
    )
    distill(
        trajectories,
        SPEC,
        config=config,
        progress=lambda p: rounds.append(int(p.segments[0].segment.split()[1])),
    )
    # One round until 0.45 of the run, two until 0.9, then all three.
    assert set(rounds[:27]) == {0}
    assert set(rounds[28:54]) == {0, 1}
    assert 2 in rounds[54:]


@pytest.mark.parametrize("kind", ["low_resolution", "fourier"])
def test_images_made_from_parameters_are_learned_too(trajectories, kind):
    losses = []
    config = dataclasses.replace(
        SMALL, iterations=60, parameterisation=kind, image_learning_rate=0.1
    )
    proxy = distill(
        trajectories, SPEC, config=config, progress=lambda p: losses.append(p.match_loss)
    )
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    if kind == "low_resolution":
        # Enlarged bilinearly by 2, a pixel is near the mean of its neighbours; of noise, the second
        # difference deviates by √6 times as much as the pixels.
        second = np.diff(proxy.images, n=2, axis=3)
        assert second.std() < 0.5 * np.sqrt(6) * proxy.images.std()


def test_teacher_labels_are_the_mean_probabilities_of_the_last_points(trajectories):
    network = network_of(SMALL, SPEC, device="cpu")
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    points = last_points(trajectories, 2)
    for point, number in zip(points, (2, 3), strict=True):
        assert np.array_equal(point, trajectories.global_path[number])
    found = teacher_labels(network, points, images).softmax(dim=1)
    each = [network.logits(torch.from_numpy(p), images).softmax(dim=1) for p in points]
    assert torch.allclose(found, (each[0] + each[1]) / 2, atol=1e-3)


def test_a_mixed_start_shares_each_class_between_its_kinds():
    mixed, labels = initial_images("noise+structured", SPEC, images_per_class=3, seed=0)
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    rough = np.abs(np.diff(mixed, axis=3)).mean(axis=(1, 2, 3)) / mixed.std(axis=(1, 2, 3))
    by_class = rough.reshape(3, 3)
    assert by_class[:, :2].min() > by_class[:, 2].max()  # two of noise, then one of shapes
