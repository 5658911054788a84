"""Logits and accuracy, of a weight vector or of a program that has its weights inside."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.runtime import ProgramFile
from edge_sdk.runtime.classifier import Classifier
from edge_sdk.training.dataset import Dataset

Float32 = npt.NDArray[np.float32]


def logits(
    file: ProgramFile, weights: Float32, dataset: Dataset, *, threads: int | None = None
) -> Float32:
    """Return the logits `(N, classes)` of the flat vector `weights` on every example.

    Raises `ConfigError` where the program or the images do not fit.
    """
    if file.kind != "evaluation":
        raise ConfigError(
            f"a program of kind {file.kind} cannot evaluate; export an evaluation program"
        )
    dataset.require(file.spec)
    program = file.load_program(threads=threads)
    try:
        images, rows = program.inputs[0].empty(), program.outputs[0].empty()
        arrays = file.to_program(weights)
        taken = [a for a, used in zip(arrays, file.is_input, strict=True) if used]
        result = np.empty((len(dataset), file.spec.classes), np.float32)
        for first in range(0, len(dataset), len(images)):
            part = dataset.pixels[first : first + len(images)]
            np.divide(part.transpose(0, 2, 3, 1), dataset.white, out=images[: len(part)])
            program.execute([images, *taken], [rows])
            result[first : first + len(part)] = cast(Float32, rows)[: len(part)]
    finally:
        program.close()
    return result


def accuracy(
    file: ProgramFile, weights: Float32, dataset: Dataset, *, threads: int | None = None
) -> float:
    """Return the part of examples whose largest logit is their label; errors as `logits`."""
    if len(dataset) == 0:
        raise ConfigError("the data set is empty")
    found = logits(file, weights, dataset, threads=threads).argmax(axis=1)
    return float(np.mean(found == dataset.labels))


def evaluate(file: ProgramFile, dataset: Dataset, *, threads: int | None = None) -> float:
    """Return the accuracy of an inference program; raises `ConfigError` where data do not fit."""
    if len(dataset) == 0:
        raise ConfigError("the data set is empty")
    dataset.require(file.spec)
    with Classifier(file, threads=threads) as classifier:
        found = classifier.predict(dataset.images).argmax(axis=1)
    return float(np.mean(found == dataset.labels))
