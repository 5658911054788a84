"""The state of a running distillation, in memory and as a file to resume from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import ModelSpec
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.segments import Segment
from server_toolkit.distill.tensor_file import read_tensor_file, write_tensor_file
from server_toolkit.errors import ConfigError

MAX_FILE_BYTES = 2**32
COUNTERS = ("iteration", "adam_count", "step_cuts", "rate_cuts", "rate_scale", "best_loss")
LEARNED = ("images", "label_logits", "log_step")


@dataclass
class DistillState:
    """Everything that the next iteration depends on.

    `values` are what is learned (`LEARNED`; "images" are the parameters of the images) and, where
    images are averaged, "average" and its "average_weight".
    """

    values: dict[str, Tensor]
    first_moments: dict[str, Tensor]
    second_moments: dict[str, Tensor]
    best: dict[str, Tensor]
    losses: list[float]
    iteration: int = 0
    adam_count: int = 0
    step_cuts: int = 0
    rate_cuts: int = 0
    rate_scale: float = 1.0
    best_loss: float = math.inf

    @classmethod
    def fresh(cls, values: dict[str, Tensor]) -> DistillState:
        """Return the state before the first iteration."""
        return cls(
            values=values,
            first_moments=_moments(values),
            second_moments=_moments(values),
            best=_copies(values),
            losses=[],
        )

    def remember_best(self, loss: float) -> None:
        """Keep the present values as those to come back to."""
        self.best, self.best_loss = _copies(self.values), loss
        self.step_cuts = self.rate_cuts = 0

    def restore_best(self) -> None:
        """Return to the best values with fresh moments."""
        self.values = _copies(self.best)
        self.first_moments, self.second_moments = _moments(self.best), _moments(self.best)
        self.adam_count = 0

    def tensors(self) -> Iterator[tuple[str, dict[str, Tensor], str]]:
        """Yield every tensor as its name in a file, the dict that holds it and its key there."""
        for group in ("values", "first_moments", "second_moments", "best"):
            held: dict[str, Tensor] = getattr(self, group)
            for key in held:
                yield f"{group}.{key}", held, key


def run_fingerprint(
    config: DistillConfig,
    spec: ModelSpec,
    segments: Sequence[Segment],
    start: Sequence[npt.NDArray[np.float32]],
) -> str:
    """Return a hash of everything that decides a run's result; `start` are images and labels."""
    digest = hashlib.sha256(json.dumps([config.to_dict(), spec.to_dict()]).encode())
    for array in start:
        digest.update(array.tobytes())
    for segment in segments:
        digest.update(segment.start.tobytes())
        digest.update(segment.target.tobytes())
    return digest.hexdigest()


def save_state(path: Path, state: DistillState, fingerprint: str) -> None:
    """Write the checkpoint, replacing the one before whole or not at all."""
    tensors = {name: held[key].cpu().numpy() for name, held, key in state.tensors()}
    tensors["losses"] = np.array(state.losses, np.float64)
    # JSON has no infinity; a best loss that was never measured travels as null.
    counters = {name: getattr(state, name) for name in COUNTERS}
    if math.isinf(state.best_loss):
        counters["best_loss"] = None
    write_tensor_file(path, tensors, {"fingerprint": fingerprint, **counters})


def load_state(path: Path, state: DistillState, fingerprint: str) -> None:
    """Overwrite a fresh `state` by the one in `path`; leave it where there is no such file.

    Raises `ConfigError` for a damaged file or one that another run wrote.
    """
    if not path.exists():
        return
    tensors, fields = read_tensor_file(path, max_bytes=MAX_FILE_BYTES)
    if fields.get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{path}: checkpoint of a run with other settings, segments or start images; "
            "remove it or name another file"
        )
    try:
        for name, held, key in state.tensors():
            held[key] = torch.from_numpy(tensors[name]).to(held[key].device)
        state.losses = tensors["losses"].tolist()
        for name in COUNTERS:
            setattr(state, name, fields[name])
    except KeyError as error:
        raise ConfigError(f"{path}: checkpoint lacks {error}; remove it") from error
    if fields["best_loss"] is None:
        state.best_loss = math.inf


def _copies(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in values.items()}


def _moments(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in values.items() if name in LEARNED}
