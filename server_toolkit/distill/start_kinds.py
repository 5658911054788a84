"""The names of what images start from."""

from __future__ import annotations

from typing import Literal, cast, get_args

from server_toolkit.errors import ConfigError

StartKind = Literal["noise", "structured", "shapes", "textures", "server_set", "server_blends"]


def start_kinds(start: str) -> tuple[StartKind, ...]:
    """Return the kinds of a `start` such as "structured" or "server_set+structured", in order.

    Raises `ConfigError` for a kind that is unknown or named twice.
    """
    kinds = tuple(start.split("+"))
    if set(kinds) <= set(get_args(StartKind)) and len(set(kinds)) == len(kinds):
        return cast(tuple[StartKind, ...], kinds)
    raise ConfigError(
        f"start is {start!r}; choose one of {', '.join(get_args(StartKind))}, "
        'or several joined by "+", each once'
    )


def needs_server_set(start: str) -> bool:
    """Say whether a start takes real images."""
    return not {"server_set", "server_blends"}.isdisjoint(start_kinds(start))
