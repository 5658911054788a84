"""The whole evaluation of one model: attacks at every size, the curve, and the flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from server_toolkit.errors import ConfigError
from server_toolkit.robust.attacks.model import Model
from server_toolkit.robust.evaluation.accuracy import Labels, Mask, overall
from server_toolkit.robust.evaluation.cost import attack_passes
from server_toolkit.robust.evaluation.crafting import AttackSettings
from server_toolkit.robust.evaluation.flags import Evidence, Flag, find_flags
from server_toolkit.robust.evaluation.judge import (
    Images,
    Keeper,
    Progress,
    answers,
    check_images,
    has_gradient,
    ready,
    run_planned,
)
from server_toolkit.robust.evaluation.judgement import Judgement, Norm, Source
from server_toolkit.robust.evaluation.plan import parse_attacks, plan, plan_curve
from server_toolkit.robust.evaluation.probes import Probes, probe

CURVE_SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the largest epsilon judged


@dataclass(frozen=True, kw_only=True)
class AssessSettings:
    """What is tried. `curve` may be empty; all sizes are in pixel units of images in [0, 1]."""

    norm: Norm = "linf"
    epsilons: tuple[float, ...]
    attacks: str = "quick"
    curve: tuple[float, ...] = ()
    seed: int = 0
    steps: int = 20
    square_queries: int = 5000
    batch_size: int = 256


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """One model's judgements, one an epsilon; `curve` maps epsilon to what stood there."""

    judgements: tuple[Judgement, ...]
    source: Source
    agreement: float | None
    curve_attack: str
    curve: Mapping[float, Mask]
    probes: Probes
    trained_epsilon: float | None

    @cached_property
    def flags(self) -> tuple[Flag, ...]:
        """Every reason to doubt the result, doubts first."""
        return find_flags(
            Evidence(
                judgements=self.judgements,
                curve=self.curve,
                probes=self.probes,
                agreement=self.agreement,
                trained_epsilon=self.trained_epsilon,
            )
        )

    @property
    def how(self) -> str:
        """Say in words what the attacks knew of the model."""
        if self.source == "white_box":
            return "White-box: the attacks followed this model's own gradients."
        if self.source == "transfer":
            return (
                "This file gives no gradients. Images were made on the torch model (transfer) and "
                "tried on this file, and Square attacked its outputs. Robust accuracy is the worst "
                "over all of them for each image: an upper bound, since no attack followed this "
                "file's own gradients."
            )
        return (
            "This file gives no gradients and no torch model lent its own: only Square attacked "
            "its outputs. Robust accuracy is an upper bound, and a loose one; name the torch model "
            "with --transfer-from."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; docs/evaluation.md describes them."""
        return {
            "attacked": self.source,
            "how": self.how,
            "agreement_with_surrogate": self.agreement,
            "judgements": [judgement.to_dict() for judgement in self.judgements],
            "curve": {
                "attack": self.curve_attack,
                "points": [
                    {"epsilon": epsilon, **overall(mask).to_dict()}
                    for epsilon, mask in sorted(self.curve.items())
                ],
            },
            "probes": self.probes.to_dict(),
            "flags": [flag.to_dict() for flag in self.flags],
        }


def assess(
    model: Model,
    images: Images,
    labels: Labels,
    settings: AssessSettings,
    *,
    surrogate: Model | None = None,
    trained_epsilon: float | None = None,
    device: str | torch.device = "cpu",
    keeper: Keeper | None = None,
    progress: Progress | None = None,
    collect: bool = False,
) -> Assessment:
    """Judge `model` at every epsilon and over the curve, and look for reasons to doubt the result.

    Arguments and errors are those of `judge`; with `collect` the judgements have `fooling`, for
    `exchange`.
    """
    check_images(images, labels)
    if not settings.epsilons:
        raise ConfigError("there is no attack size to judge at; give at least one epsilon")
    model = ready(model, device)
    surrogate = None if surrogate is None else ready(surrogate, device)
    names = parse_attacks(settings.attacks, settings.norm)
    white_box = has_gradient(model, torch.from_numpy(images[:1]).to(device))
    lent = surrogate is not None
    planned = plan(names, settings.norm, white_box=white_box, surrogate=lent)
    walk = plan_curve(settings.norm, white_box=white_box, surrogate=lent)
    shared: dict[str, Any] = dict(
        surrogate=surrogate, seed=settings.seed, batch_size=settings.batch_size, device=device,
        keeper=keeper,
    )  # fmt: skip
    sizes = AttackSettings(
        norm=settings.norm,
        epsilon=1.0,
        steps=settings.steps,
        square_queries=settings.square_queries,
    )
    runs = [(planned, epsilon) for epsilon in settings.epsilons]
    runs += [((walk,), epsilon) for epsilon in settings.curve]
    classes = answers(model, images[:1], 1, device).shape[1]
    costs = [
        sum(attack_passes(entry.attack, sizes, classes=classes) for entry in attacks)
        for attacks, _ in runs
    ]
    results = []
    for index, (attacks, epsilon) in enumerate(runs):
        results.append(
            run_planned(
                attacks,
                model,
                images,
                labels,
                settings=replace(sizes, epsilon=epsilon),
                progress=_part_of(progress, sum(costs[:index]), costs[index], sum(costs)),
                collect=collect and index < len(settings.epsilons),
                **shared,
            )
        )
    judgements = tuple(results[: len(settings.epsilons)])
    curve = {0.0: judgements[0].outcomes[0].correct} if settings.curve else {}
    for result in results[len(settings.epsilons) :]:
        curve[result.epsilon] = result.robust
    probes = probe(
        model,
        images,
        labels,
        robust=judgements[0].robust,
        epsilon=settings.epsilons[0],
        norm=settings.norm,
        margins_tried="autoattack" in names or "cw_linf" in names,
        seed=settings.seed,
        batch_size=settings.batch_size,
        device=device,
    )
    agreement = None
    if surrogate is not None and not white_box:
        agreement = _agreement(model, surrogate, images, settings.batch_size, device)
    return Assessment(
        judgements=judgements,
        source="white_box" if white_box else "transfer" if lent else "scores",
        agreement=agreement,
        curve_attack=walk.attack,
        curve=curve,
        probes=probes,
        trained_epsilon=trained_epsilon,
    )


def _part_of(progress: Progress | None, before: int, here: int, whole: int) -> Progress | None:
    """Tell of a run of `here` passes an image as a part of `whole`, of which `before` were done."""
    if progress is None:
        return None

    def told(done: int, total: int, text: str) -> None:
        images = total // here  # the same in every run: those with the right clean answer
        progress(before * images + done, whole * images, text)

    return told


def default_curve(epsilons: Sequence[float]) -> tuple[float, ...]:
    """Return the sizes of a curve around the judged ones: quarters of the largest, up to twice."""
    largest = max(epsilons)
    return tuple(sorted({*epsilons, *(share * largest for share in CURVE_SHARES)}))


def _agreement(
    model: Model, surrogate: Model, images: Images, batch_size: int, device: str | torch.device
) -> float:
    """Return the share of clean images on which both models answer alike."""
    first, second = (answers(m, images, batch_size, device).argmax(1) for m in (model, surrogate))
    return float((first == second).float().mean())
