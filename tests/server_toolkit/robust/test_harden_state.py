"""A checkpoint brings back all that a run carries, and only into the same run."""

import pytest
import torch

from models import ModelSpec
from models.networks import build_model
from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden_averaging import WeightAverage
from server_toolkit.robust.harden_config import HardenConfig
from server_toolkit.robust.harden_selection import Selection
from server_toolkit.robust.harden_state import HardenProgress, TrainingState
from server_toolkit.robust.objectives.free import Free
from server_toolkit.robust.objectives.inner import Ascent
from server_toolkit.robust.objectives.pgd_at import PgdAt

SPEC = ModelSpec(channels=1, image_size=8, classes=3, width=4, depth=2, mean=(0.3,), std=(0.4,))
CONFIG = HardenConfig(averaging="ema", holdout_share=0.5)


def fresh(objective=None):
    network = build_model(SPEC, seed=0)
    images, labels = torch.zeros(2, 1, 8, 8), torch.eye(3)[:2]
    return TrainingState(
        network=network,
        velocity=[torch.zeros_like(p) for p in network.parameters()],
        objective=Free(replays=2) if objective is None else objective,
        average=WeightAverage(CONFIG),
        selection=Selection(images, labels, CONFIG, Ascent(1)),
        history=[],
    )


@pytest.fixture
def used():
    """A state with another number in every place that a checkpoint keeps."""
    state = fresh()
    with torch.no_grad():
        for tensor in (*state.parameters, *state.velocity):
            tensor.normal_()
    state.objective.load_state({"perturbation": torch.rand(2, 1, 8, 8)})
    state.average.update([torch.randn_like(p) for p in state.parameters], step=1)
    state.selection.load(
        [torch.randn_like(p) for p in state.parameters],
        {"best_score": [0.25, -1.5], "best_step": 7, "since_best": 3},
    )
    state.history.append(HardenProgress(1, 300, 1.5, None, 0.1, 0.02, 0.5))
    return state


def tensors(state):
    return [
        *state.parameters,
        *state.velocity,
        *state.objective.state().values(),
        *state.average.mean,
        *state.selection.best,
    ]


def test_everything_comes_back(used, tmp_path):
    used.save(tmp_path / "x", "run")
    back = fresh()
    back.load(tmp_path / "x", "run")
    pairs = list(zip(tensors(used), tensors(back), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert back.selection.to_dict() == used.selection.to_dict()
    assert back.history == used.history


def test_the_result_is_the_best_else_the_average_else_the_weights(used):
    assert used.result is used.selection.best
    used.selection.best = None
    assert used.result is used.average.mean
    used.average.mean = None
    assert all(a is b for a, b in zip(used.result, used.network.parameters(), strict=True))


def test_a_lent_network_has_the_average_and_gets_its_own_weights_back(used):
    before = [parameter.detach().clone() for parameter in used.parameters]
    with used.averaged_network() as network:
        assert all(map(torch.equal, network.parameters(), used.average.mean))
    assert all(map(torch.equal, used.parameters, before))


def test_another_runs_checkpoint_is_refused(used, tmp_path):
    used.save(tmp_path / "x", "run")
    with pytest.raises(ConfigError, match="other settings"):
        fresh().load(tmp_path / "x", "another")


def test_a_checkpoint_that_was_cut_is_refused(used, tmp_path):
    path = tmp_path / "x"
    used.save(path, "run")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="remove it"):
        fresh().load(path, "run")


def test_state_of_another_objective_is_refused(used, tmp_path):
    used.save(tmp_path / "x", "run")
    with pytest.raises(ConfigError, match="PgdAt has no perturbation"):
        fresh(PgdAt(Ascent(1))).load(tmp_path / "x", "run")
