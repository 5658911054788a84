"""Assess: models, files and fleet names alike, under every attack on one set of images."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import ConfigError as DataError
from edge_sdk.protocol.part_file import sha256_of_file
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.sources import load_npz
from models import ModelSpec
from server_toolkit.benchmark.presets import DEFAULT_EPSILONS, THREAT_MODELS
from server_toolkit.datasets import load_dataset
from server_toolkit.errors import ConfigError
from server_toolkit.robust.evaluation.assess import Assessment, AssessSettings, assess
from server_toolkit.robust.evaluation.compare import Gain, paired_gain
from server_toolkit.robust.evaluation.exchange import exchange
from server_toolkit.robust.evaluation.judgement import CLEAN, Norm
from server_toolkit.robust.evaluation.kept import KeptBatches
from server_toolkit.stages.evaluate import Judge
from server_toolkit.stages.subjects import Subject
from server_toolkit.stages.workspace import FEDAVG, Progress, Workspace

FORMAT, VERSION = "trajsyn-evaluation", 1
KEPT_FOLDER = "evaluations/kept"

USUAL_EPSILONS = THREAT_MODELS | DEFAULT_EPSILONS
"""The l∞ sizes that the benchmark judges a named data set at, for pixels in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Assessed:
    """One subject and what came of it."""

    subject: Subject
    assessment: Assessment

    @property
    def title(self) -> str:
        """The model's name and which of its files this is."""
        return f"{self.subject.name} ({self.subject.kind.replace('_', ' ')})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        lender = self.subject.surrogate
        return {
            "name": self.subject.name,
            "kind": self.subject.kind,
            "sha256": self.subject.sha256,
            "trained_epsilon": self.subject.trained_epsilon,
            "surrogate": None
            if lender is None
            else {"name": lender.name, "kind": lender.kind, "sha256": lender.sha256},
            **self.assessment.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What one model gains over the baseline on the same images, at one epsilon."""

    title: str
    baseline: str
    epsilon: float
    clean: Gain
    robust: Gain

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "model": self.title,
            "baseline": self.baseline,
            "epsilon": self.epsilon,
            "clean_gain": self.clean.to_dict(),
            "robust_gain": self.robust.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that one command measured."""

    judge: Judge
    settings: AssessSettings
    models: tuple[Assessed, ...]
    comparisons: tuple[Comparison, ...]
    created_at_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the file that --json writes; docs/evaluation.md describes it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "created_at_s": self.created_at_s,
            "judged_on": self.judge.to_dict(),
            "settings": asdict(self.settings),
            "models": [model.to_dict() for model in self.models],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }


def images_of_file(path: Path) -> Judge:
    """Return the labelled images of an npz file; raises `ConfigError` (of `edge_sdk`)."""
    return _judge("file", path.name, sha256_of_file(path), load_npz(path))


def images_of_dataset(name: str, directory: Path | None) -> Judge:
    """Return a named data set's test images; raises `ConfigError`."""
    test = load_dataset(name, directory).test
    digest = hashlib.sha256(test.pixels.tobytes() + test.labels.tobytes()).hexdigest()
    return _judge("dataset", name, digest, test)


def fitted(judge: Judge, subjects: Sequence[Subject]) -> Judge:
    """Return the images as all the subjects, and what lends them gradients, take them.

    Raises `ConfigError` where the images do not fit, or where no images fit all.
    """
    lenders = [subject.surrogate for subject in subjects if subject.surrogate is not None]
    first, *others = [*subjects, *lenders]
    result = _fitted(judge, first.shape)
    for other in others:
        if _fitted(judge, other.shape).images.shape != result.images.shape:
            raise ConfigError(
                f"{first.name} takes images of {_size(first.shape)}, {other.name} of "
                f"{_size(other.shape)}; they cannot be judged on the same images"
            )
    return result


def _size(shape: ModelSpec) -> str:
    return f"{shape.channels}x{shape.image_size}x{shape.image_size}"


def _fitted(judge: Judge, shape: ModelSpec) -> Judge:
    classes = int(judge.labels.max()) + 1
    try:
        data = Dataset(judge.images, judge.labels, classes).fit_to(shape)
    except DataError as error:
        raise ConfigError(f"{judge.name}: {error}") from error
    return replace(judge, images=np.ascontiguousarray(data.images))


def drawn(judge: Judge, count: int, *, seed: int) -> Judge:
    """Return `count` of the images, drawn by `seed`, in their order; all where there are fewer."""
    if count >= len(judge.labels):
        return judge
    chosen = np.sort(np.random.default_rng(seed).permutation(len(judge.labels))[:count])
    name = f"{judge.name} ({count} of {len(judge.labels)} images)"
    return replace(judge, name=name, images=judge.images[chosen], labels=judge.labels[chosen])


def keep_folder(workspace: Workspace | None) -> Path:
    """Return where finished batches are kept: in the fleet directory, else the user's cache."""
    if workspace is not None:
        return workspace.ledger.directory / KEPT_FOLDER
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "trajsyn" / "evaluations"


def assess_subject(
    subject: Subject,
    judge: Judge,
    settings: AssessSettings,
    *,
    keep: Path,
    progress: Progress,
    device: str = "cpu",
    collect: bool = False,
) -> Assessed:
    """Attack one subject, carrying on with what is kept in `keep`; raises `ConfigError`.

    `collect` is needed for `exchanged` and costs as much memory and disk as the images at every
    size. `progress` is told of thousandths of the work, by passes through the model.
    """
    lender = subject.surrogate
    parts = (
        _identity(subject), "" if lender is None else _identity(lender),
        hashlib.sha256(judge.images.tobytes() + judge.labels.tobytes()).hexdigest(),
        device.partition(":")[0],
    )  # fmt: skip
    assessment = assess(
        subject.model,
        judge.images,
        judge.labels,
        settings,
        surrogate=None if lender is None else lender.model,
        trained_epsilon=subject.trained_epsilon,
        device=device,
        keeper=KeptBatches(keep, " ".join(parts)),
        progress=lambda done, total, text: progress(1000 * done // max(total, 1), 1000, text),
        collect=collect,
    )
    return Assessed(subject=subject, assessment=assessment)


def twins(subject: Subject, subjects: Sequence[Subject]) -> list[Subject]:
    """Return the subjects that are files of the same torch model: it and what was exported of it.

    An ONNX file is known to be made of the model that lends it gradients.
    """
    return [other for other in subjects if _origin(other) == _origin(subject)]


def _origin(subject: Subject) -> str:
    lender = subject.surrogate
    return _identity(subject if lender is None or subject.kind == "torch" else lender)


def exchanged(
    models: Sequence[Assessed], settings: AssessSettings, *, device: str = "cpu"
) -> list[Assessed]:
    """Return the models, each after the images too that fooled other files of the same model."""
    result = list(models)
    for origin in dict.fromkeys(_origin(model.subject) for model in models):
        places = [i for i, model in enumerate(models) if _origin(model.subject) == origin]
        if len(places) > 1:
            found = exchange(
                {models[i].title: (models[i].subject.model, models[i].assessment) for i in places},
                batch_size=settings.batch_size,
                device=device,
            )
            for i in places:
                result[i] = replace(models[i], assessment=found[models[i].title])
    return result


def _identity(subject: Subject) -> str:
    """Return what decides a model's answers: the same weights in another network are another."""
    return f"{subject.sha256} {json.dumps(subject.shape.to_dict(), sort_keys=True)}"


def summarise(judge: Judge, settings: AssessSettings, models: Sequence[Assessed]) -> Result:
    """Put the models side by side: each beside the undefended one, or else the first."""
    return Result(
        judge=judge,
        settings=settings,
        models=tuple(models),
        comparisons=tuple(_compare(models)),
        created_at_s=time.time(),
    )


def parse_sizes(text: str, option: str) -> tuple[float, ...]:
    """Return attack sizes such as "0.1,8/255", sorted; raises `ConfigError` naming the option."""
    sizes = []
    for part in text.split(","):
        top, _, bottom = part.partition("/")
        try:
            size = float(top) / float(bottom or "1")
        except (ValueError, ZeroDivisionError):
            size = float("nan")
        if not 0 < size < 1e6:
            raise ConfigError(
                f"{option} {part.strip()!r:.40} is no attack size; write numbers above 0 such as "
                "0.1,8/255, in pixels that reach from 0 to 1"
            )
        sizes.append(size)
    return tuple(sorted(set(sizes)))


def default_sizes(judge: Judge, norm: Norm, workspace: Workspace | None) -> tuple[float, ...]:
    """Return the usual l∞ sizes for a named data set, else those of the fleet's [evaluate].

    Raises `ConfigError` where nothing is usual.
    """
    if norm == "linf" and judge.kind == "dataset" and judge.name in USUAL_EPSILONS:
        return USUAL_EPSILONS[judge.name]
    if norm == "linf" and workspace is not None:
        return workspace.config.evaluate.epsilons
    usual = ", ".join(
        f"{name} {' and '.join(f'{size:.3g}' for size in sizes)}"
        for name, sizes in USUAL_EPSILONS.items()
    )
    raise ConfigError(f"how large are the attacks? Give --epsilon; usual in the l∞ norm: {usual}")


def _judge(kind: str, name: str, sha256: str, data: Dataset) -> Judge:
    if len(data) == 0:
        raise ConfigError(f"{name} holds no images")
    return Judge(kind, name, sha256, data.images, data.labels, None)


def _compare(models: Sequence[Assessed]) -> list[Comparison]:
    """Compare every model with the baseline's file of the same kind, or its torch model."""
    names = [model.subject.name for model in models]
    baseline = FEDAVG if FEDAVG in names else names[0]
    files = {m.subject.kind: m for m in reversed(models) if m.subject.name == baseline}
    comparisons = []
    for model in models:
        base = files.get(model.subject.kind, next(m for m in models if m.subject.name == baseline))
        if model.subject.name == baseline:
            continue
        pairs = zip(model.assessment.judgements, base.assessment.judgements, strict=True)
        for mine, theirs in pairs:
            comparisons.append(
                Comparison(
                    title=model.title,
                    baseline=base.title,
                    epsilon=mine.epsilon,
                    clean=paired_gain(mine.correct(CLEAN), theirs.correct(CLEAN)),
                    robust=paired_gain(mine.robust, theirs.robust),
                )
            )
    return comparisons
