"""The quick record that the release gate reads: the same attacked images for torch and ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from server_toolkit.robust.attacks import fgsm, pgd
from server_toolkit.robust.evaluation.accuracy import Accuracy, by_class, overall
from server_toolkit.robust.evaluation.judge import check_images

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Predictor = Callable[[Images], npt.NDArray[np.float32]]
"""Maps `(N, C, H, W) float32 in [0, 1]` to logits `(N, classes)`."""


@dataclass(frozen=True)
class Score:
    """What one predictor makes of one set of images; `epsilon` and `steps` are 0 for clean ones."""

    predictor: str
    attack: str
    epsilon: float
    steps: int
    overall: Accuracy
    by_class: tuple[Accuracy, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "predictor": self.predictor,
            "attack": self.attack,
            "epsilon": self.epsilon,
            "steps": self.steps,
            **self.overall.to_dict(),
            "by_class": [accuracy.to_dict() for accuracy in self.by_class],
        }


@dataclass(frozen=True)
class EvaluationReport:
    """All scores of one evaluation; the attacks' seed makes them repeatable."""

    scores: tuple[Score, ...]
    seed: int

    def score(
        self, *, attack: str = "clean", epsilon: float = 0.0, predictor: str = "torch"
    ) -> Score:
        """Return one score; raises `KeyError` for one that was not measured."""
        for score in self.scores:
            if (score.predictor, score.attack, score.epsilon) == (predictor, attack, epsilon):
                return score
        raise KeyError(f"no score of {predictor} under {attack} at epsilon {epsilon}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"seed": self.seed, "scores": [score.to_dict() for score in self.scores]}


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    epsilons: Sequence[float],
    steps: int = 20,
    seed: int = 0,
    predictors: Mapping[str, Predictor] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> EvaluationReport:
    """Measure clean, FGSM and PGD accuracy of `model` for every epsilon.

    `images` `(N, C, H, W) float32 in [0, 1]`, `labels` `(N,) int64`. The adversarial images are
    crafted once, white-box on the torch model, and judged by it (named `torch`) and by every one
    of `predictors`, such as the exported ONNX: for those the numbers say how well the examples
    transfer, an upper bound on accuracy under an attack of their own. Raises `ConfigError` for
    images or labels that do not fit each other.
    """
    check_images(images, labels)
    model = model.to(device).eval()

    def torch_predictor(batch: Images) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = (
                model(torch.from_numpy(batch).to(device)).cpu().numpy()
            )
            return logits

    judges: dict[str, Predictor] = {"torch": torch_predictor, **(predictors or {})}
    conditions = [("clean", 0.0, 0)]
    for epsilon in epsilons:
        conditions += [("fgsm", epsilon, 1), ("pgd", epsilon, steps)]

    classes = int(labels.max()) + 1
    scores: list[Score] = []
    for attack, epsilon, attack_steps in conditions:
        generator = torch.Generator().manual_seed(seed)
        hits: dict[str, list[npt.NDArray[np.bool_]]] = {name: [] for name in judges}
        for start in range(0, len(images), batch_size):
            x = torch.from_numpy(images[start : start + batch_size]).to(device)
            y = torch.from_numpy(labels[start : start + batch_size]).to(device)
            crafted = _craft(model, x, y, attack, epsilon, attack_steps, generator)
            batch = crafted.cpu().numpy()
            for name, predict in judges.items():
                answer = predict(batch).argmax(axis=1)
                hits[name].append(answer == labels[start : start + batch_size])
        for name, parts in hits.items():
            hit = np.concatenate(parts)
            parts_by_class = by_class(hit, labels, classes)
            scores.append(Score(name, attack, epsilon, attack_steps, overall(hit), parts_by_class))
    return EvaluationReport(tuple(scores), seed)


def _craft(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: str,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the images that the named attack makes of `images`."""
    if attack == "clean":
        return images
    if attack == "fgsm":
        return fgsm(model, images, labels, epsilon=epsilon)
    return pgd(model, images, labels, epsilon=epsilon, steps=steps, generator=generator)
