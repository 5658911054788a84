"""Model descriptions in files: TOML or JSON, on their own or as the [model] table of another."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.spec import ModelSpec, SpecError

MAX_BYTES = 1 << 20
DEFAULTS = {"architecture": "convnet", "width": 128, "depth": 3}


def read_description(path: Path) -> ModelSpec:
    """Return the network that a .toml or .json file describes.

    The keys are `ModelSpec`'s, at the top or in a table `model`, as in a server.toml. Raises
    `SpecError` naming the file.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode()
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SpecError(f"{path} is no {kind}: {error}") from error
    table = fields.get("model", fields) if isinstance(fields, dict) else None
    if not isinstance(table, dict):
        raise SpecError(f"{path} holds no model description")
    try:
        return ModelSpec.from_dict(DEFAULTS | table)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def to_toml(spec: ModelSpec) -> str:
    """Return the lines that `read_description` reads; without sizes that only the ConvNet has."""
    fields = spec.to_dict()
    layers = fields.pop("layers", None)
    if spec.architecture != "convnet":
        fields = {k: v for k, v in fields.items() if DEFAULTS.get(k) != v}
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    if layers is not None:
        lines += ["layers = [", *(f"  {_inline(layer)}," for layer in layers), "]"]
    return "\n".join(lines) + "\n"


def _inline(fields: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in fields.items()) + " }"
