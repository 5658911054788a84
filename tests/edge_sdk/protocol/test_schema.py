"""Strict JSON: what does not fit exactly is refused with `ProtocolError` and the field's name."""

import contextlib
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.schema import MAX_DEPTH, MAX_ITEMS, MAX_STRING, bounded, decode, parse_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    level: int = bounded(low=1, high=3)


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = bounded(low=0, high=10)
    ratio: float = bounded(low=0, high=1)
    name: str = bounded(pattern=r"[a-z]{1,4}")
    flag: bool
    kind: Literal["x", "y"]
    inner: Inner
    pairs: tuple[tuple[int, int], ...]
    scores: dict[str, float]
    anything: dict[str, Any]
    maybe: float | None
    note: str = "none"
    extra: list[int] = field(default_factory=list)


GOOD: dict[str, Any] = {
    "count": 3,
    "ratio": 0.5,
    "name": "abc",
    "flag": True,
    "kind": "x",
    "inner": {"level": 2},
    "pairs": [[1, 2], [3, 4]],
    "scores": {"a": 1.5},
    "anything": {"deep": [1, {"er": None}]},
    "maybe": None,
}


def parse(data):
    return parse_json(data, max_bytes=1000)


def test_a_fitting_object_becomes_the_dataclass():
    value = decode(Outer, GOOD)
    assert value.inner == Inner(level=2)
    assert value.pairs == ((1, 2), (3, 4))
    assert value.note == "none"


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("count", True),  # a bool is an int to Python
        ("count", 3.0),
        ("count", "3"),
        ("count", None),
        ("count", -1),
        ("count", 11),
        ("ratio", True),
        ("ratio", "0.5"),
        ("ratio", 1.0000001),
        ("ratio", -1e-300),
        ("ratio", 2**53),
        ("ratio", float("nan")),
        ("name", ""),
        ("name", "abcde"),
        ("name", "abc\n"),  # `$` would let this pass, fullmatch does not
        ("name", 5),
        ("flag", 1),
        ("flag", "true"),
        ("kind", "z"),
        ("kind", 0),
        ("kind", ["x"]),
        ("kind", None),
        ("inner", None),
        ("inner", [2]),
        ("inner", {}),
        ("inner", {"level": 4}),
        ("inner", {"level": 2, "odd": 1}),
        ("pairs", {}),
        ("pairs", "12"),
        ("pairs", [1, 2]),
        ("pairs", [[1, 2, 3]]),
        ("pairs", [[1]]),
        ("pairs", [[1, True]]),
        ("pairs", [[1, 2.0]]),
        ("pairs", [[1, 2]] * (MAX_ITEMS + 1)),
        ("scores", []),
        ("scores", {"a": "b"}),
        ("scores", {str(i): 0.0 for i in range(MAX_ITEMS + 1)}),
        ("anything", 3),
        ("maybe", "x"),
        ("maybe", True),
        ("maybe", float("inf")),
        ("note", None),
        ("note", "x" * (MAX_STRING + 1)),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(name, bad):
    with pytest.raises(ProtocolError, match=name):
        decode(Outer, {**GOOD, name: bad})


def test_a_missing_field_is_named():
    for name in GOOD:
        with pytest.raises(ProtocolError, match=f"missing field {name}"):
            decode(Outer, {k: v for k, v in GOOD.items() if k != name})


def test_an_unknown_field_is_named_without_its_control_characters():
    with pytest.raises(ProtocolError, match="unknown field") as caught:
        decode(Outer, {**GOOD, "odd\nforged log line": 1})
    assert "\n" not in str(caught.value)


def test_a_nested_field_is_named_by_its_path():
    with pytest.raises(ProtocolError, match=r"inner\.level"):
        decode(Outer, {**GOOD, "inner": {"level": 9}})


def test_an_integer_is_taken_for_a_float_but_stored_as_one():
    value = decode(Outer, {**GOOD, "ratio": 1}).ratio
    assert (value, type(value)) == (1.0, float)


def test_a_dataclass_own_complaint_becomes_a_protocol_error():
    @dataclass(frozen=True)
    class Even:
        n: int

        def __post_init__(self):
            if self.n % 2:
                raise ValueError("n is odd")

    assert decode(Even, {"n": 2}) == Even(2)
    with pytest.raises(ProtocolError, match="n is odd"):
        decode(Even, {"n": 3})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"{} {}",
        b"{}garbage",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": [{"b": -1e999}]}',
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": 1, "\\u0061": 2}',  # the same key spelt otherwise
        b'{"a": 9223372036854775808}',
        b'{"a": ' + b"9" * 900 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\\u0000"}',
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
)
def test_json_that_is_not_plain_is_refused(data):
    with pytest.raises(ProtocolError):
        parse(data)


def test_an_integer_too_long_for_python_is_refused():
    with pytest.raises(ProtocolError):
        parse_json(b'{"a": ' + b"9" * 9000 + b"}", max_bytes=10_000)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 500, 900, 950, 990, 1000, 15_000])
def test_deep_nesting_is_refused_whatever_the_depth(levels):
    for left, right in ((b"[", b"]"), (b'{"a":', b"}")):
        data = b'{"a":' + left * levels + b"1" + right * levels + b"}"
        with pytest.raises(ProtocolError):
            parse_json(data, max_bytes=200_000)


def test_nesting_up_to_the_limit_is_taken():
    levels = MAX_DEPTH - 2  # the object and the number in the middle count too
    assert parse(b'{"a":' + b"[" * levels + b"1" + b"]" * levels + b"}")


def test_the_size_limit_is_inclusive():
    assert parse_json(b"{}", max_bytes=2) == {}
    with pytest.raises(ProtocolError, match="3 bytes"):
        parse_json(b"{} ", max_bytes=2)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_protocol_errors(data):
    with contextlib.suppress(ProtocolError):
        assert isinstance(parse(data), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_a_field_of_any_json_raises_nothing_but_protocol_errors(name, value):
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(Outer, {**GOOD, name: value}), Outer)
