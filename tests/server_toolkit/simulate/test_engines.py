import dataclasses

import numpy as np
import pytest

from models import ModelSpec
from server_toolkit.errors import ConfigError
from server_toolkit.simulate import FederationSettings
from server_toolkit.simulate.engines import chosen_engine, stack_size
from server_toolkit.simulate.local import LocalJob
from server_toolkit.simulate.native import NativeEngine
from server_toolkit.simulate.stacked import StackedEngine
from tests.server_toolkit.simulate.fleets import CONVNET, MIXED, first_weights, shards

SIZES = (11, 4, 23, 8)
SETTINGS = FederationSettings(epochs=2, batch_size=5, learning_rate=0.05, momentum=0.8)
VARIANTS = {
    "plain": {},
    "decay and FedProx": {"weight_decay": 0.02, "algorithm": "fedprox", "proximal_mu": 0.3},
    "pgd": {"objective": "pgd", "epsilon": 0.05, "attack_steps": 2},
}


def jobs(spec, *, corrected=False):
    start = first_weights(spec)
    rng = np.random.default_rng(7)
    return [
        LocalJob(
            f"device-{i}",
            start,
            shard,
            seed=100 + i,
            correction=0.02 * rng.normal(size=start.size).astype(np.float32) if corrected else None,
        )
        for i, shard in enumerate(shards(spec, *SIZES))
    ]


def native(settings, programs, spec):
    made = dict(programs[spec])
    if settings.objective == "plain":
        del made["attack_program"]
    return NativeEngine(settings, **made)


@pytest.mark.parametrize("spec", [CONVNET, MIXED], ids=["convnet", "mixed chain"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_stacked_devices_end_where_the_runtime_does(programs, spec, options):
    """Up to the last bits of float32: the order of sums differs, nothing else."""
    settings = dataclasses.replace(SETTINGS, **options)
    work = jobs(spec, corrected=True)
    theirs = native(settings, programs, spec).train(work)
    ours = StackedEngine(spec, settings, together=3).train(work)
    for job, a, b in zip(work, theirs, ours, strict=True):
        moved = np.linalg.norm(a.weights - job.start)
        assert np.linalg.norm(a.weights - b.weights) < 2e-5 * moved
        assert a.steps == b.steps
        assert b.loss_first_epoch == pytest.approx(a.loss_first_epoch, rel=1e-5)
        assert b.loss_last_epoch == pytest.approx(a.loss_last_epoch, rel=1e-5)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_stack_gives_what_its_devices_give_alone(options):
    settings = dataclasses.replace(SETTINGS, **options)
    work = jobs(MIXED)
    alone = StackedEngine(MIXED, settings, together=1).train(work)
    told = []
    stacked = StackedEngine(MIXED, settings, together=4).train(work, done=told.append)
    for a, b in zip(alone, stacked, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, rtol=0, atol=2e-6)
    assert told == sorted(told)
    assert told[-1] == 4


def test_workers_change_no_bit(programs):
    work = jobs(CONVNET)
    one, three = (
        native(dataclasses.replace(SETTINGS, workers=w), programs, CONVNET).train(work)
        for w in (1, 3)
    )
    assert all((a.weights == b.weights).all() for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("engine", ["native", "stacked"])
def test_a_device_that_diverges_is_named(programs, engine):
    settings = dataclasses.replace(
        SETTINGS, learning_rate=100.0, algorithm="fedprox", proximal_mu=1000.0
    )
    made = (
        native(settings, programs, CONVNET)
        if engine == "native"
        else StackedEngine(CONVNET, settings, together=4)
    )
    with pytest.raises(ConfigError, match=r"device-\d: .*learning rate"):
        made.train(jobs(CONVNET))


def test_the_devices_runtime_is_chosen_on_a_cpu_and_stacks_on_a_gpu():
    assert chosen_engine(FederationSettings()) == "native"
    assert chosen_engine(FederationSettings(device="cuda:1")) == "stacked"
    assert chosen_engine(FederationSettings(engine="stacked")) == "stacked"


def test_small_devices_share_a_stack_and_large_ones_do_not():
    large = ModelSpec(
        channels=3, image_size=32, classes=10, width=32, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    few = FederationSettings(batch_size=4, engine="stacked")
    assert stack_size(CONVNET, few) == 300_000 // (4 * 6 * 8 * 8)
    assert stack_size(large, FederationSettings(batch_size=32)) == 1
    assert stack_size(large, FederationSettings(batch_size=32, device="cuda")) == 256
