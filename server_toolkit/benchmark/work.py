"""How each kind of piece is computed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_sdk.training.dataset import Dataset
from models.layout import Flat
from server_toolkit.benchmark.federate import compute_federate, final_weights
from server_toolkit.benchmark.judging import compute_evaluate
from server_toolkit.benchmark.piece import Piece
from server_toolkit.benchmark.proxy_makers import MAKERS, MakerInput
from server_toolkit.benchmark.store import Outcome, Record
from server_toolkit.benchmark.workplace import Workplace, Workshop
from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.segments import Trajectories
from server_toolkit.distill.tensor_file import Array
from server_toolkit.robust.harden import HardenConfig, HardenProgress, harden

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]


def perform(piece: Piece, workshop: Workshop) -> None:
    """Compute a piece whose inputs are done and keep it.

    Raises `OutOfTimeError` where the time is used up, and whatever goes wrong.
    """
    place = Workplace(piece, workshop)
    outcome = WORK[piece.kind](place)
    cpu_s, wall_s = place.spent()
    software = f"trajsyn {importlib.metadata.version('trajsyn')}"
    record = Record(outcome.values, cpu_s, wall_s, software, place.device)
    place.store.finish(piece, outcome, record)


def compute_proxy(place: Workplace) -> Outcome:
    """Make images on the server."""
    settings = place.piece.settings
    path = [place.store.tensors(p) for _, p in sorted(place.piece.inputs.items())]
    made = MAKERS[settings["maker"]](
        MakerInput(
            spec=place.spec,
            config=DistillConfig(**settings["config"]),
            trajectories=trajectories_of(path) if path else None,
            server_set=place.server_set(),
            checkpoint=place.store.checkpoint(place.piece),
            device=place.device,
            tick=lambda _text: place.tick(),
        )
    )
    tensors: dict[str, Array] = {
        "images": made.images,
        "labels": made.labels,
        "hard_labels": made.hard_labels,
    }
    return Outcome({"images": len(made.images), "match_loss": made.match_loss}, tensors)


def trajectories_of(parts: Sequence[Mapping[str, Array]]) -> Trajectories:
    """Return what the server saw in rounds that follow each other; the first counts as round 0.

    Where one part ends and the next begins the server may have hardened the aggregate.
    """
    numbers = [
        sorted(int(n.split("/")[1]) for n in part if n.startswith("global/")) for part in parts
    ]
    first = numbers[0][0]
    fleet: dict[int, Flat] = {}
    unhardened: dict[int, Flat] = {}
    devices: dict[str, dict[int, Flat]] = {}
    for part, own in zip(parts, numbers, strict=True):
        if own[0] - first in fleet:
            unhardened[own[0] - first] = fleet[own[0] - first]
        fleet |= {number - first: part[f"global/{number}"] for number in own}
        for name, array in part.items():
            if name.startswith("device/"):
                _, device, number = name.split("/")
                devices.setdefault(device, {})[int(number) - first] = array
    return Trajectories(fleet, devices, unhardened)


def compute_harden(place: Workplace) -> Outcome:
    """Train a model adversarially on what the arm's server may use."""
    settings, store = place.piece.settings, place.store
    config = HardenConfig(**settings["config"])
    inputs = place.piece.inputs
    proxies = [store.tensors(p) for name, p in inputs.items() if name.startswith("proxy")]
    server_set = place.server_set()
    real = None
    if proxies:
        images = np.concatenate([proxy["images"] for proxy in proxies])
        kind = "labels" if config.label_source == "learned" else "hard_labels"
        labels: Labels = np.concatenate([proxy[kind] for proxy in proxies])
        if server_set is not None:
            real = Dataset(server_set.images, server_set.labels, place.spec.classes)
    else:
        assert server_set is not None
        images, labels = server_set.images, server_set.labels
    result = harden(
        place.spec,
        final_weights(store, inputs["start"]),
        images,
        labels,
        real=real,
        config=config,
        teacher=_teachers(place, config),
        checkpoint=store.checkpoint(place.piece),
        progress=_ticker(place),
        device=place.device,
    )
    count = len(images) + (0 if real is None else len(real))
    return Outcome({"images": count}, {"weights": result.weights})


def _teachers(place: Workplace, config: HardenConfig) -> list[Flat]:
    """Return the weights before hardening, or for an ensemble those of some rounds up to them."""
    teacher = place.piece.inputs["start"]
    if config.label_source == "ensemble" and teacher.kind == "federate":
        begin, end = teacher.settings["rounds"]
        size, share = place.piece.settings["ensemble"]
        numbers = np.linspace(max(begin, round(share * end)), end, size).round()
        path = place.store.tensors(teacher)
        return [path[f"global/{number}"] for number in sorted({int(n) for n in numbers})]
    return [final_weights(place.store, teacher)]


def _ticker(place: Workplace) -> Callable[[HardenProgress], None]:
    return lambda _state: place.tick()


WORK: dict[str, Callable[[Workplace], Outcome]] = {
    "federate": compute_federate,
    "proxy": compute_proxy,
    "harden": compute_harden,
    "evaluate": compute_evaluate,
}
