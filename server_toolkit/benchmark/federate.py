"""Federated rounds as a piece of work: the devices' part, which arms share."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from edge_sdk.export import attack_program, training_program
from edge_sdk.runtime import ProgramFile
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.partition import make_partition
from models import ModelSpec
from models.layout import Flat
from models.networks import build_model, flat_parameters
from server_toolkit.benchmark.piece import Piece
from server_toolkit.benchmark.store import Outcome, Store
from server_toolkit.benchmark.workplace import Workplace
from server_toolkit.distill.tensor_file import Array, read_tensor_file, write_tensor_file
from server_toolkit.simulate import Federation, FederationSettings, RoundResult
from server_toolkit.simulate.engines import chosen_engine

MAX_CHECKPOINT_BYTES = 2**34
CHECKPOINT_EVERY_S = 20.0


def compute_federate(place: Workplace) -> Outcome:
    """Run rounds and return their path.

    Arrays: `global/T` is what round T started from, that after the last round included;
    `device/NAME/T` what a device had after round T, where asked for; `state/NAME` what the devices
    keep between rounds. Values: passes (a forward and a backward of one image) and processor
    seconds on all devices together, bytes sent.
    """
    settings = place.piece.settings
    begin, end = settings["rounds"]
    fleet, inputs = settings["fleet"], place.piece.inputs
    federation = _federation(place)
    path: dict[str, Array] = {f"global/{begin}": _first_weights(place)}
    if "state" in inputs:
        _load_state(federation, place.store.tensors(inputs["state"]))
    totals = {"passes": 0, "device_cpu_s": 0.0, "bytes_up": 0}
    done = _load_checkpoint(place, federation, path, totals)

    saved_s = time.perf_counter()
    for number in range(begin if done is None else done, end):
        result = federation.run_round(_flat(path[f"global/{number}"]), number)
        path[f"global/{number + 1}"] = result.weights
        _count(result, totals, epochs=fleet["epochs"], attack_steps=fleet["attack_steps"])
        if settings["keep_devices"]:
            base = path[f"global/{number}"]
            path |= {f"device/{c.device}/{number}": base + c.update for c in result.clients}
        due = place.time_is_up or time.perf_counter() - saved_s > CHECKPOINT_EVERY_S
        if due and number + 1 < end:
            tensors = path | _state(federation)
            fields = {"round": number + 1, "totals": totals}
            write_tensor_file(place.store.checkpoint(place.piece), tensors, fields)
            saved_s = time.perf_counter()
            place.tick()
    return Outcome(totals, path | _state(federation))


def final_weights(store: Store, piece: Piece) -> Flat:
    """Return the model that a piece ended with."""
    tensors = store.tensors(piece)
    if piece.kind == "federate":
        return _flat(tensors[f"global/{piece.settings['rounds'][1]}"])
    return _flat(tensors["weights"])


def shards_of(place: Workplace) -> list[Dataset]:
    """Return every device's images: "iid", or "dirichlet:ALPHA" by class."""
    settings = place.piece.settings
    devices = place.split().devices
    kind, _, alpha = settings["partition"].partition(":")
    names = [f"device-{i:03}" for i in range(settings["fleet"]["devices"])]
    shares = make_partition(
        devices.labels,
        names,
        kind=kind,
        seed=settings["data"]["seed"],
        alpha=float(alpha or 1),
    )
    return [devices.subset(shares[name]) for name in names]


def _federation(place: Workplace) -> Federation:
    settings = _federation_settings(place)
    programs: dict[str, ProgramFile] = {}
    if chosen_engine(settings) == "native":
        programs["program"] = _training_program(place.spec, settings.micro_batch)
        if settings.objective == "pgd":
            programs["attack_program"] = _attack_program(place.spec, settings.micro_batch)
    return Federation(place.spec, shards_of(place), settings, **programs)


# Exporting takes seconds, and a worker trains the same few networks again and again.
@lru_cache(maxsize=4)
def _training_program(spec: ModelSpec, micro_batch: int) -> ProgramFile:
    return training_program(spec, micro_batch=micro_batch)


@lru_cache(maxsize=4)
def _attack_program(spec: ModelSpec, micro_batch: int) -> ProgramFile:
    return attack_program(spec, micro_batch=micro_batch)


def _federation_settings(place: Workplace) -> FederationSettings:
    settings = place.piece.settings
    fleet = settings["fleet"]
    plain = FederationSettings(
        epochs=fleet["epochs"],
        batch_size=fleet["batch_size"],
        learning_rate=fleet["learning_rate"],
        momentum=fleet["momentum"],
        seed=settings["data"]["seed"],
        encoding=settings["encoding"],
        run="benchmark",
        device=place.device,
    )
    if settings["objective"] == "plain":
        return plain
    return replace(
        plain, objective="pgd", epsilon=settings["epsilon"], attack_steps=fleet["attack_steps"]
    )


def _first_weights(place: Workplace) -> Flat:
    """Return what the first round starts from: another piece's model, or fresh weights."""
    start = place.piece.inputs.get("start")
    if start is not None:
        return final_weights(place.store, start)
    return flat_parameters(build_model(place.spec, seed=place.piece.settings["data"]["seed"]))


def _count(result: RoundResult, totals: dict[str, Any], *, epochs: int, attack_steps: int) -> None:
    """Add what a round cost: an attack step is a pass like a training step's."""
    for client in result.clients:
        totals["passes"] += client.samples * epochs * (1 + attack_steps)
        totals["device_cpu_s"] += client.local.cpu_s
        totals["bytes_up"] += len(client.data)


def _state(federation: Federation) -> dict[str, Array]:
    return {f"state/{name}": array for name, array in federation.state().items()}


def _load_state(federation: Federation, tensors: dict[str, Array]) -> None:
    prefix = "state/"
    federation.restore(
        {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}
    )


def _load_checkpoint(
    place: Workplace, federation: Federation, path: dict[str, Array], totals: dict[str, Any]
) -> int | None:
    """Take up an interrupted run; return the round it goes on with, None for a fresh one."""
    file = place.store.checkpoint(place.piece)
    if not file.exists():
        return None
    tensors, fields = read_tensor_file(file, max_bytes=MAX_CHECKPOINT_BYTES)
    _load_state(federation, tensors)
    path.update({name: a for name, a in tensors.items() if not name.startswith("state/")})
    totals.update(fields["totals"])
    return int(fields["round"])


def _flat(array: Array) -> Flat:
    return array.astype(np.float32, copy=False)
