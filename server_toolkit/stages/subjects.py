"""Models to evaluate: a name of the fleet directory, or a file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx

from edge_sdk.errors import EdgeError, ProtocolError
from edge_sdk.protocol.updates import decode_weights
from models import ModelSpec, SpecError, layout_of
from models.description import read_description
from models.layout import Flat
from models.networks import build_model, load_flat
from server_toolkit.config import load_config
from server_toolkit.errors import ConfigError, ServerError
from server_toolkit.release.onnx_model import OnnxModel
from server_toolkit.robust.attacks.model import Model
from server_toolkit.robust.evaluation.onnx import OnnxLogits
from server_toolkit.stages.onnx_files import export_model
from server_toolkit.stages.release import SUMMARY_FILE
from server_toolkit.stages.workspace import Workspace

log = logging.getLogger(__name__)

Kind = Literal["torch", "onnx_fp32", "onnx_int8"]
SUFFIXES = (".safetensors", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to judge: `model` gives logits for the images that `shape` describes.

    `surrogate` lends its gradients to a model without; its hash belongs to the result.
    `trained_epsilon` is what the model was hardened with, if that is known.
    """

    name: str
    kind: Kind
    sha256: str
    model: Model
    shape: ModelSpec
    surrogate: Subject | None = None
    trained_epsilon: float | None = None


def is_file(model: str) -> bool:
    """Say whether this names a model file rather than a model of the fleet directory."""
    return model.endswith(SUFFIXES)


def fleet_subjects(
    workspace: Workspace, name: str, *, surrogate: Subject | None = None
) -> list[Subject]:
    """Return a fleet model and the two ONNX files that are made of it, these with its gradients.

    `surrogate` lends its own to all three instead.
    """
    weights, sha256 = workspace.weights(name)
    settings = workspace.model_lineage(name).get("settings", {})
    torch_model = _torch_subject(name, workspace.ledger.spec, weights, sha256)
    torch_model = replace(torch_model, trained_epsilon=settings.get("epsilon"), surrogate=surrogate)
    pair, _ = export_model(workspace, name)
    files: list[tuple[Kind, bytes]] = [("onnx_fp32", pair.fp32), ("onnx_int8", pair.int8)]
    return [
        _lend(torch_model, surrogate),
        *(
            replace(
                torch_model,
                kind=kind,
                sha256=hashlib.sha256(data).hexdigest(),
                model=OnnxLogits(data),
                surrogate=surrogate or torch_model,
            )
            for kind, data in files
        ),
    ]


def file_subject(
    path: Path, *, network: Path | None = None, surrogate: Subject | None = None
) -> Subject:
    """Return the model in a .safetensors or .onnx file.

    The network of a .safetensors file is read from `network`, else from the .toml or .json file
    of the same name beside it, else from the server.toml of the fleet directory that it lies in. An
    .onnx file in a fleet directory gets the gradients of the torch model that it was exported from,
    unless `surrogate` is given. Raises `ConfigError` naming the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if path.suffix == ".onnx":
        return _onnx_subject(path, data, surrogate or _exported_from(path, data))
    spec = read_description(network or _description_of(path))
    try:
        weights = decode_weights(data, layout_of(spec))
    except ProtocolError as error:
        raise ConfigError(f"{path} holds no weights of the described network: {error}") from error
    subject = _torch_subject(path.stem, spec, weights, hashlib.sha256(data).hexdigest())
    return _lend(subject, surrogate)


def distinctly_named(called: Sequence[tuple[str, Subject]]) -> list[Subject]:
    """Return the subjects; those that share a name and a kind get what the user called them."""
    counts = Counter((subject.name, subject.kind) for _, subject in called)
    return [
        replace(subject, name=text) if counts[subject.name, subject.kind] > 1 else subject
        for text, subject in called
    ]


def _lend(subject: Subject, surrogate: Subject | None) -> Subject:
    """Return the subject with the other's gradients, unless they are its own."""
    own = surrogate is not None and surrogate.sha256 == subject.sha256
    return replace(subject, surrogate=None if own else surrogate)


def _torch_subject(name: str, spec: ModelSpec, weights: Flat, sha256: str) -> Subject:
    model = build_model(spec, seed=0)
    load_flat(model, weights)
    return Subject(name=name, kind="torch", sha256=sha256, model=model, shape=spec)


def _onnx_subject(path: Path, data: bytes, surrogate: Subject | None) -> Subject:
    try:
        loaded = OnnxModel(data)
        operators = {node.op_type for node in onnx.load_from_string(data).graph.node}
    except Exception as error:  # onnxruntime's own classes derive from Exception alone
        raise ConfigError(f"{path} is no ONNX model that onnxruntime can load: {error}") from error
    quantized = any("QuantizeLinear" in o or o.startswith("QLinear") for o in operators)
    return Subject(
        name=path.stem,
        kind="onnx_int8" if quantized else "onnx_fp32",
        sha256=hashlib.sha256(data).hexdigest(),
        model=OnnxLogits(data),
        shape=_shape(path, loaded),
        surrogate=surrogate,
    )


def _shape(path: Path, model: OnnxModel) -> ModelSpec:
    """Describe the images that an ONNX model takes, as a network of one layer."""
    batch, *sides = model.input_shape
    numbers = [n for n in (*sides, model.output_shape[-1]) if isinstance(n, int)]
    if len(sides) != 3 or len(numbers) != 4 or (isinstance(batch, int) and batch != 1):
        raise ConfigError(
            f"{path} takes {model.input_shape} and gives {model.output_shape}; it must take "
            "(batch, channels, height, width) and give (batch, classes), with a batch that is free "
            "or 1 and the rest fixed"
        )
    channels, height, width, classes = numbers
    if height != width:
        raise ConfigError(f"{path} takes images of {height}x{width}; only squares can be judged")
    try:
        return ModelSpec(
            architecture="chain",
            channels=channels,
            image_size=height,
            classes=classes,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
        )
    except SpecError as error:
        raise ConfigError(f"{path}: {error}") from error


def _description_of(path: Path) -> Path:
    places = [
        path.with_suffix(".toml"),
        path.with_suffix(".json"),
        path.absolute().parent / "server.toml",
        path.absolute().parent.parent / "server.toml",
    ]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"which network {path} belongs to is not known; describe it in {places[0].name} beside it "
        "or name its description with --network"
    )


def _exported_from(path: Path, data: bytes) -> Subject | None:
    """Return the fleet's torch model whose export gives exactly this file, if there is one."""
    folder = path.absolute().parent
    summary = folder / SUMMARY_FILE
    try:
        if summary.is_file():
            root, name = folder.parent.parent, str(json.loads(summary.read_text())["model"])
        else:
            root, name = folder.parent, path.name.removesuffix(".onnx").rpartition(".")[0]
        if not name or not (root / "server.toml").is_file():
            return None
        candidate, *exported = fleet_subjects(
            Workspace.open(load_config(root / "server.toml")), name
        )
    except (ServerError, EdgeError, OSError, ValueError, KeyError) as error:
        log.warning("%s: the torch model it was made of cannot be read: %s", path, error)
        return None
    if hashlib.sha256(data).hexdigest() not in (subject.sha256 for subject in exported):
        log.warning("%s was not made of the present model %s; no gradients by transfer", path, name)
        return None
    return candidate
