"""Value and JSON: nothing lost both ways, and what JSON or protobuf cannot hold is refused clearly."""

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from server.errors import FunctionFailed, InvalidArgument
from server.rpc.values import MAX_DEPTH, MAX_VALUES, fill_from_json, to_json

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


def from_json(text: bytes) -> struct_pb2.Value:
    value = struct_pb2.Value()
    fill_from_json(value, text)
    return value


@given(JSON)
def test_from_json_is_what_protobuf_itself_makes(value: Any) -> None:
    expected = struct_pb2.Value()
    json_format.Parse(json.dumps(value), expected)
    assert from_json(json.dumps(value).encode()) == expected


@given(JSON)
def test_there_and_back_is_the_same(value: Any) -> None:
    assert json.loads(to_json(from_json(json.dumps(value).encode()), field="input")) == value


def test_unset_is_null() -> None:
    assert to_json(struct_pb2.Value(), field="input") == b"null"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_json_does_not_have_are_refused_by_field(number: float) -> None:
    with pytest.raises(InvalidArgument, match="input holds the number") as caught:
        to_json(struct_pb2.Value(number_value=number), field="input")
    assert caught.value.field == "input"


def test_a_deep_answer_is_refused_before_a_client_chokes_on_it() -> None:
    shallow = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    raw = from_json(shallow).SerializeToString()
    assert struct_pb2.Value.FromString(raw) == from_json(shallow)
    with pytest.raises(FunctionFailed, match="over REST"):
        from_json(b'{"a":' + shallow + b"}")


@pytest.mark.parametrize("depth", [1_000, 2_000, 100_000])
def test_a_very_deep_answer_is_refused_alike(depth: int) -> None:
    with pytest.raises(FunctionFailed, match="over REST"):
        from_json(b"[" * depth + b"]" * depth)


def test_lone_surrogates_are_replaced_because_protobuf_cannot_hold_them() -> None:
    value = from_json(b'{"\\ud800": ["a\\udc00", "\\ud83d\\ude00"]}')
    assert json_format.MessageToDict(value) == {"?": ["a?", "\U0001f600"]}


def test_messages_hold_only_as_many_values_as_the_event_loop_bears() -> None:
    many = b"[" + b"[]," * MAX_VALUES + b"1]"
    with pytest.raises(FunctionFailed, match="more than 50000 values"):
        from_json(many)
    assert from_json(b'"' + b"x" * 1_000_000 + b'"').string_value == "x" * 1_000_000
    value = struct_pb2.Value()
    value.list_value.values.extend([struct_pb2.Value(bool_value=True)] * MAX_VALUES)
    with pytest.raises(InvalidArgument, match="more than 50000 values") as caught:
        to_json(value, field="input")
    assert caught.value.field == "input"
