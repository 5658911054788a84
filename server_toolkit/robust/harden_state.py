"""Everything that a hardening run carries from step to step, and its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from server_toolkit.distill.tensor_file import read_tensor_file, write_tensor_file
from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden_averaging import WeightAverage
from server_toolkit.robust.harden_selection import Selection
from server_toolkit.robust.objectives import Objective

MAX_CHECKPOINT_BYTES = 2**34


@dataclass(frozen=True)
class HardenProgress:
    """One step done; the losses are means over its batch, before their weights.

    `clean_loss` is `None` for an objective without clean images; `held_out_accuracy`, robust and in
    [0, 1], is `None` where it was not measured after this step.
    """

    step: int
    steps: int
    adversarial_loss: float
    clean_loss: float | None
    epsilon: float
    learning_rate: float
    held_out_accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self)


@dataclass
class TrainingState:
    """The network and its optimiser's velocity, and what the settings add to them."""

    network: nn.Module
    velocity: list[Tensor]
    objective: Objective
    average: WeightAverage
    selection: Selection | None
    history: list[HardenProgress]

    @property
    def parameters(self) -> list[Tensor]:
        """The network's parameters, in layout order."""
        return list(self.network.parameters())

    @property
    def result(self) -> list[Tensor]:
        """What the run returns: the best weights where there is a measure of that."""
        best = None if self.selection is None else self.selection.best
        return self.weights if best is None else best

    @property
    def weights(self) -> list[Tensor]:
        """What the run would return now if nothing were held out."""
        return self.parameters if self.average.mean is None else self.average.mean

    @contextmanager
    def averaged_network(self) -> Iterator[nn.Module]:
        """Lend the network with `weights` in it; afterwards it has its own again."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        _copy(self.weights, self.parameters)
        try:
            yield self.network
        finally:
            _copy(own, self.parameters)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write a checkpoint whole or not at all; `fingerprint` names the run."""
        tensors = {**_pack("weights", self.parameters), **_pack("velocity", self.velocity)}
        tensors |= _pack("average", self.average.mean or [])
        for name, tensor in self.objective.state().items():
            tensors[f"objective.{name}"] = tensor.cpu().numpy()
        fields: dict[str, Any] = {
            "fingerprint": fingerprint,
            "history": [entry.to_dict() for entry in self.history],
        }
        if self.selection is not None:
            tensors |= _pack("best", self.selection.best or [])
            fields["selection"] = self.selection.to_dict()
        write_tensor_file(path, tensors, fields)

    def load(self, path: Path, fingerprint: str) -> None:
        """Go back to a checkpoint; raises `ConfigError` for another run's or a damaged one."""
        tensors, fields = read_tensor_file(path, max_bytes=MAX_CHECKPOINT_BYTES)
        if fields.get("fingerprint") != fingerprint:
            raise ConfigError(
                f"{path}: checkpoint of a run with other settings, weights, images or engine; "
                "remove it or name another file"
            )
        try:
            _copy(_unpack("weights", tensors), self.parameters)
            _copy(_unpack("velocity", tensors), self.velocity)
            device = self.velocity[0].device
            prefix = "objective."
            self.objective.load_state(
                {
                    name.removeprefix(prefix): torch.from_numpy(array).to(device)
                    for name, array in tensors.items()
                    if name.startswith(prefix)
                }
            )
            self.average.mean = _unpack("average", tensors, device) or None
            if self.selection is not None:
                self.selection.load(_unpack("best", tensors, device), fields["selection"])
            self.history += [HardenProgress(**entry) for entry in fields["history"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{path}: damaged checkpoint: {error}; remove it") from error


def _copy(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for value, tensor in zip(values, tensors, strict=True):
            tensor.copy_(value)


def _pack(name: str, tensors: Sequence[Tensor]) -> dict[str, npt.NDArray[np.float32]]:
    return {f"{name}.{i}": tensor.detach().cpu().numpy() for i, tensor in enumerate(tensors)}


def _unpack(
    name: str, arrays: Mapping[str, npt.NDArray[Any]], device: torch.device | str = "cpu"
) -> list[Tensor]:
    count = sum(key.rpartition(".")[0] == name for key in arrays)
    return [torch.from_numpy(arrays[f"{name}.{i}"]).to(device) for i in range(count)]
