"""A number that says where it comes from, or why it is not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["measured", "derived", "estimated", "absent"]
Scalar = float | int | bool | str


@dataclass(frozen=True)
class Value:
    """`value` in `unit`; `kind` says how far to trust it, `source` what gave it.

    measured: read from a clock, counter or sensor. derived: exact arithmetic on measured values.
    estimated: rests on an assumption, which `source` names. absent: there is none; `reason` says
    why and `remedy` what to do. `uncertainty` is one standard deviation in `unit`.
    """

    value: Scalar | None
    unit: str
    kind: Kind
    source: str
    reason: str = ""
    remedy: str = ""
    uncertainty: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != (self.kind == "absent"):
            raise ValueError("exactly an absent value has no value")
        if self.kind == "absent" and not self.reason:
            raise ValueError("an absent value needs its reason")

    @property
    def number(self) -> float | None:
        """The value as a number, None where it is absent or text."""
        return None if self.value is None or isinstance(self.value, str) else float(self.value)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that say something; `value`, `unit`, `kind` and `source` always."""
        fields = {"value": self.value, "unit": self.unit, "kind": self.kind, "source": self.source}
        optional = {
            "reason": self.reason,
            "remedy": self.remedy,
            "uncertainty": self.uncertainty,
            "count": self.count,
        }
        return fields | {k: v for k, v in optional.items() if v not in ("", None)}


def measured(value: Scalar, unit: str, source: str, **more: Any) -> Value:
    """Return a value read from a clock, counter or sensor."""
    return Value(value, unit, "measured", source, **more)


def derived(value: Scalar, unit: str, source: str, **more: Any) -> Value:
    """Return exact arithmetic on measured values."""
    return Value(value, unit, "derived", source, **more)


def estimated(value: Scalar, unit: str, source: str, **more: Any) -> Value:
    """Return a value that rests on the assumption named in `source`."""
    return Value(value, unit, "estimated", source, **more)


def absent(unit: str, reason: str, remedy: str = "") -> Value:
    """Return that there is no value, and why."""
    return Value(None, unit, "absent", "none", reason, remedy)


def quantile(samples: Sequence[float], q: float, unit: str, source: str) -> Value:
    """Return the `q` quantile of measured samples (nearest rank, so it is one of them)."""
    if not samples:
        return absent(unit, "nothing was measured")
    value = float(np.quantile(np.asarray(samples), q, method="inverted_cdf"))
    return measured(value, unit, source, count=len(samples))


def ratio(above: Value, below: Value, source: str) -> Value:
    """Return `above / below`; absent if either is, or if `below` may as well be zero."""
    a, b = above.number, below.number
    if a is None or b is None:
        return absent("1", (above if a is None else below).reason or "not a number")
    if b == 0 or abs(b) < 2 * (below.uncertainty or 0.0):
        return absent("1", "the reference cannot be told from zero", "raise --steps or --idle")
    return derived(a / b, "1", source)


def combine(
    unit: str, source: str, values: Sequence[Value], compute: Callable[..., float]
) -> Value:
    """Return `compute` of numbers; absent with the first reason if one is absent.

    The result is estimated if one of them is, else derived.
    """
    for value in values:
        if value.number is None:
            return absent(unit, value.reason or "not a number", value.remedy)
    make = estimated if any(v.kind == "estimated" for v in values) else derived
    return make(float(compute(*(v.number for v in values))), unit, source)


def to_json(tree: Any) -> Any:
    """Return nested dicts and lists with every `Value` as its JSON object."""
    if isinstance(tree, Value):
        return tree.to_json()
    if isinstance(tree, dict):
        return {name: to_json(item) for name, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_json(item) for item in tree]
    return tree
