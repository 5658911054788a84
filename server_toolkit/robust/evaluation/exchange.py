"""Files of one model try the images that fooled the others: they compute nearly the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from server_toolkit.robust.attacks.model import Model
from server_toolkit.robust.evaluation.assess import Assessment
from server_toolkit.robust.evaluation.judge import answers, ready
from server_toolkit.robust.evaluation.judgement import CLEAN, EXCHANGED, Judgement, Outcome


def exchange(
    files: Mapping[str, tuple[Model, Assessment]],
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> dict[str, Assessment]:
    """Return the assessments with one more outcome each: under images that fooled the others.

    `files` maps names to models and what `assess` found with `collect`, all on the same images and
    at the same sizes. Nothing is taken for granted: every image is shown to the model, and counts
    only if the model answers it wrongly.
    """
    exchanged = {}
    for name, (model, assessment) in files.items():
        others = {other: found for other, (_, found) in files.items() if other != name}
        on_device = ready(model, device)
        judgements = [
            _shown(
                on_device,
                judgement,
                {other: found.judgements[index] for other, found in others.items()},
                batch_size,
                device,
            )
            for index, judgement in enumerate(assessment.judgements)
        ]
        exchanged[name] = replace(assessment, judgements=tuple(judgements))
    return exchanged


def _shown(
    model: Model,
    judgement: Judgement,
    others: Mapping[str, Judgement],
    batch_size: int,
    device: str | torch.device,
) -> Judgement:
    """Return the judgement after the images that fooled the others at the same size."""
    correct = judgement.correct(CLEAN).copy()
    for other in others.values():
        fooling = other.fooling
        if fooling is None or len(fooling.indices) == 0:
            continue
        answered = answers(model, fooling.images, batch_size, device).argmax(1).numpy()
        correct[fooling.indices[answered != judgement.labels[fooling.indices]]] = False
    outcome = Outcome(
        attack=EXCHANGED, source="transfer", correct=correct, settings={"from": list(others)}
    )
    return replace(judgement, outcomes=(*judgement.outcomes, outcome))
