"""The training loop of hardening: one objective's step after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from server_toolkit.errors import HardeningError
from server_toolkit.robust.harden_batches import Batches
from server_toolkit.robust.harden_config import HardenConfig
from server_toolkit.robust.harden_labels import Teachers
from server_toolkit.robust.harden_state import HardenProgress, TrainingState
from server_toolkit.robust.objectives import Terms, make_gradient_rule


def train(
    state: TrainingState,
    batches: Batches,
    teachers: Teachers | None,
    config: HardenConfig,
    *,
    after_step: Callable[[], None],
) -> None:
    """Take all steps that `state` has not taken yet, or fewer where its selection ends them.

    `teachers` label every batch, or its own labels count. Raises `HardeningError` where a loss is
    no longer finite.
    """
    rule = make_gradient_rule(config)
    drawn = None
    while len(state.history) < config.steps:
        if state.selection is not None and state.selection.exhausted:
            return
        step = len(state.history)
        if drawn != step // state.objective.replays:
            drawn = step // state.objective.replays
            images, labels, generator = batches.draw(drawn)
            if teachers is not None:
                labels = teachers(images)
        epsilon, learning_rate = config.epsilon_at(step), config.learning_rate_at(step)
        terms, gradients = state.objective.step(
            state.network, images, labels, epsilon=epsilon, generator=generator, rule=rule
        )
        adversarial_loss, clean_loss = _finite(terms, step + 1)
        _sgd(state.parameters, state.velocity, gradients, learning_rate, config)
        state.average.update(state.parameters, step=step + 1)
        entry = HardenProgress(
            step=step + 1,
            steps=config.steps,
            adversarial_loss=adversarial_loss,
            clean_loss=clean_loss,
            epsilon=epsilon,
            learning_rate=learning_rate,
            held_out_accuracy=_measure(state, step + 1, config),
        )
        state.history.append(entry)
        after_step()


def _finite(terms: Terms, step: int) -> tuple[float, float | None]:
    """Return both losses, fetched from the device at once."""
    losses = [term for term in (terms.adversarial, terms.clean) if term is not None]
    values = torch.stack(losses).tolist()
    if not all(math.isfinite(value) for value in values):
        raise HardeningError(
            f"hardening diverged: the loss of step {step} is {values[0]}; "
            "use a smaller learning_rate or a longer epsilon_warmup"
        )
    return values[0], values[1] if len(values) > 1 else None


def _sgd(
    parameters: Sequence[Tensor],
    velocity: Sequence[Tensor],
    gradients: Sequence[Tensor],
    learning_rate: float,
    config: HardenConfig,
) -> None:
    """Take one step of SGD with momentum and weight decay, in place."""
    with torch.no_grad():
        for parameter, held, gradient in zip(parameters, velocity, gradients, strict=True):
            decayed = gradient + config.weight_decay * parameter
            held.mul_(config.momentum).add_(decayed)
            parameter.sub_(held, alpha=learning_rate)


def _measure(state: TrainingState, step: int, config: HardenConfig) -> float | None:
    """Judge what would be returned now on the held-out part, every `holdout_every` steps."""
    if state.selection is None or (step % config.holdout_every and step != config.steps):
        return None
    with state.averaged_network() as network:
        return state.selection.measure(network, step=step)
