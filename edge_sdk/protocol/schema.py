"""Strict decoding of JSON into frozen dataclasses: exact types, no unknown fields, bounds."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from edge_sdk.errors import ProtocolError

T = TypeVar("T")
MAX_STRING = 4096
MAX_ITEMS = 4096
MAX_DEPTH = 16
MAX_INTEGER = 2**63 - 1  # what a database column holds


def bounded(
    *,
    low: float | None = None,
    high: float | None = None,
    pattern: str | None = None,
    default: Any = dataclasses.MISSING,
) -> Any:
    """Return a dataclass field whose number lies in [low, high] or whose text matches `pattern`."""
    metadata = {"low": low, "high": high, "pattern": pattern}
    return dataclasses.field(default=default, metadata=metadata)


def parse_json(data: bytes, *, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in `data`.

    Raises `ProtocolError` for more than `max_bytes`, bad UTF-8, duplicate keys, more than
    `MAX_DEPTH` levels, text that no file or database takes (lone surrogates, NUL), integers beyond
    64 bits, numbers that are not finite, and anything that is not an object.
    """
    if len(data) > max_bytes:
        raise ProtocolError(f"message of {len(data)} bytes; at most {max_bytes} are accepted")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:  # ValueError: also integers of 5,000 digits
        raise ProtocolError(f"message is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError("message is JSON but no object")
    _check_tree(value, 1)
    return value


def _check_tree(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ProtocolError(f"message has more than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_tree(key, depth)
            _check_tree(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_tree(item, depth + 1)
    elif isinstance(value, str):
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise ProtocolError("message holds text with NUL or half a surrogate pair")
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ProtocolError("message holds an integer beyond 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ProtocolError("message holds a number beyond float64")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ProtocolError("message repeats a key")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ProtocolError(f"message holds {name}")


def decode(cls: type[T], fields: Mapping[str, Any], *, path: str = "") -> T:
    """Build the dataclass `cls` from decoded JSON; raises `ProtocolError` naming the bad field."""
    hints = typing.get_type_hints(cls)
    specs = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    required = {
        n
        for n, f in specs.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    for name in sorted(fields.keys() - specs.keys()):
        raise ProtocolError(f"unknown field {path}{_short(name)}")
    for name in sorted(required - fields.keys()):
        raise ProtocolError(f"missing field {path}{name}")
    values = {}
    for name, value in fields.items():
        values[name] = _value(hints[name], value, f"{path}{name}")
        _check_bounds(specs[name].metadata, values[name], f"{path}{name}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ProtocolError(f"{path or 'message'}: {error}") from error


def _value(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [a for a in arguments if a is not type(None)]
        return _value(hint, value, path)
    if origin is typing.Literal:
        if value not in arguments or type(value) is not str:
            raise ProtocolError(f"{path} is {_short(value)}; expected one of {arguments}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise ProtocolError(f"{path} must be a list of at most {MAX_ITEMS} items")
        if arguments[-1] is Ellipsis:
            return tuple(_value(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise ProtocolError(f"{path} must have {len(arguments)} items")
        pairs = zip(arguments, value, strict=True)
        return tuple(_value(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(pairs))
    if origin is dict:
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise ProtocolError(f"{path} must be an object of at most {MAX_ITEMS} keys")
        return {k: _value(arguments[1], v, f"{path}.{_short(k)}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ProtocolError(f"{path} must be an object")
        return decode(typing.cast(type[Any], hint), value, path=f"{path}.")
    if hint is Any:
        return value
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not hint:
        raise ProtocolError(f"{path} is {_short(value)}; expected {hint.__name__}")
    if hint is str and len(value) > MAX_STRING:
        raise ProtocolError(f"{path} is longer than {MAX_STRING} characters")
    if hint is float and not math.isfinite(value):
        raise ProtocolError(f"{path} is not finite")
    return value


def _check_bounds(metadata: Mapping[str, Any], value: Any, path: str) -> None:
    if value is None or not metadata:
        return
    low, high, pattern = metadata["low"], metadata["high"], metadata["pattern"]
    if (low is not None and value < low) or (high is not None and value > high):
        raise ProtocolError(f"{path} is {_short(value)}; it must be from {low} to {high}")
    if pattern is not None and not re.fullmatch(pattern, value):
        raise ProtocolError(f"{path} is {_short(value)}; it must match {pattern}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
