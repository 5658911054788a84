"""The log of a distillation: a line of JSON an iteration, and TensorBoard's files where it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from server_toolkit.distill.engine import DistillProgress
from server_toolkit.distill.initial_images import Images

LEVEL = 1 / 255  # what an 8-bit image can show


class RunLog:
    """Appends to `path` what every iteration did, flushed line by line.

    A run that carries on from a checkpoint repeats some iterations: their first lines are removed,
    so that every iteration has one. Where the `tensorboard` package is installed the same scalars
    go to the folder `path` without ".jsonl" too. To be used with `with`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._board: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def write(self, progress: DistillProgress) -> None:
        """Add one iteration."""
        if self._file is None:
            self._open(progress.iteration)
        line = log_line(progress)
        assert self._file
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board:
            for name, value in _scalars(line):
                self._board.add_scalar(name, value, progress.iteration)

    def _open(self, first: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(self._path) if line["iteration"] < first]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            # Whatever a killed run wrote from this iteration on is hidden.
            self._board = SummaryWriter(str(self._path.with_suffix("")), purge_step=first)


def log_line(progress: DistillProgress) -> dict[str, Any]:
    """Return one iteration, JSON-ready; numbers that are not finite become null."""
    images = progress.snapshot()[0]
    line = {
        "iteration": progress.iteration,
        "match_loss": progress.match_loss,
        "segments": [
            {"segment": s.segment, "match_loss": _number(s.match_loss), "skipped": s.skipped}
            for s in progress.segments
        ],
        "step_size": progress.step_size,
        "gradient_norms": {k: _number(v) for k, v in progress.gradient_norms.items()},
        "images": image_statistics(images),
        "rate_scale": progress.rate_scale,
        "event": progress.event,
        "seconds": round(progress.seconds, 6),
    }
    return {k: _number(v) if isinstance(v, float) else v for k, v in line.items()}


def image_statistics(images: Images) -> dict[str, float]:
    """Return mean and deviation of all pixels, the share that is black or white, and roughness.

    Roughness is the mean absolute difference of neighbours; noise has a third, photographs of
    everyday objects a few hundredths.
    """
    down, right = np.diff(images, axis=2), np.diff(images, axis=3)
    return {
        "mean": float(images.mean()),
        "std": float(images.std()),
        "saturated": float(((images < LEVEL) | (images > 1 - LEVEL)).mean()),
        "roughness": float((np.abs(down).mean() + np.abs(right).mean()) / 2),
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _scalars(line: dict[str, Any]) -> list[tuple[str, float]]:
    flat = {name: line[name] for name in ("match_loss", "step_size", "rate_scale", "seconds")}
    flat |= {f"gradient_norm/{name}": value for name, value in line["gradient_norms"].items()}
    flat |= {f"images/{name}": value for name, value in line["images"].items()}
    return [(name, value) for name, value in flat.items() if value is not None]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log; what a killed run left of its last one is dropped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
