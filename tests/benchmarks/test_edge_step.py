"""The floor's arithmetic against torch's own count, and what a step's gradient is taken from."""

import importlib

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import ModelSpec, layout_of
from models.networks import build_model


@pytest.fixture
def part(request, monkeypatch):
    """A function that imports a part of the benchmark, which runs from its own folder."""
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    return lambda name: importlib.import_module(f"edge_step_parts.{name}")


def spec_of(architecture, channels, width=8):
    normal = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return ModelSpec(
        architecture=architecture, channels=channels, image_size=32, classes=10, width=width,
        **normal,
    )  # fmt: skip


@pytest.mark.parametrize(("architecture", "channels"), [("convnet", 1), ("alexnet", 3)])
def test_the_floor_counts_the_operations_that_torch_counts(part, architecture, channels):
    spec = spec_of(architecture, channels)
    counter = FlopCounterMode(display=False)
    with counter:
        logits = build_model(spec)(torch.rand(2, channels, 32, 32))
        torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
    assert part("floor").step_flop(spec, 2) == counter.get_total_flops()


def test_a_larger_batch_moves_more_activations_and_the_same_weights(part):
    spec, step_bytes = spec_of("convnet", 3), part("floor").step_bytes
    weights = 8 * 4 * layout_of(spec).size
    assert step_bytes(spec, 32) - weights == 2 * (step_bytes(spec, 16) - weights)


def test_a_giant_step_gives_the_gradient_and_a_wrong_one_is_found(part):
    arms, spec = part("arms"), spec_of("convnet", 1)
    options = {"threads": 1, "steps": 2, "batch_size": 4}
    model = build_model(spec, seed=0)
    start = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    images, labels = arms.examples(spec, options)
    model.double()
    logits = model(torch.from_numpy(images[:4]).double())
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[:4])).backward()
    truth = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])

    train = arms.torch_trainer(spec, start, options, compiled=False)
    found = arms.gradient(train, start)
    assert arms.gradient_errors(found, truth, spec)["gradient_error"] < 1e-5
    found[-1] += 0.1 * np.linalg.norm(truth)
    wrong = arms.gradient_errors(found, truth, spec)
    assert wrong["gradient_error"] == pytest.approx(0.1, rel=1e-3)
    assert wrong["gradient_error_worst_of"] == "classifier.bias"


def test_every_step_is_watched_after_the_warm_up(part):
    watch = part("arms").Watch(steps=8)
    for step in range(1, 9):
        watch(step, 1.0)
    result = watch.result()
    assert len(result["losses"]) == 8
    assert len(result["step_ms"]) == len(result["page_faults"]) == 8 - 1 - 3
    assert abs(result["heap_growth_bytes"]) < 1 << 20
