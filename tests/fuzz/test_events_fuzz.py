"""Any bytes are an event or InvalidArgument; and what is an event stays one when it is written again."""

import contextlib
import json
from dataclasses import replace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.events.drafts import events_of, parse_body
from server.events.envelope import decode, encode
from server.events.json_text import Json, JsonError, Scanner, read

PROJECT = "5f0f9f0e-0000-4000-8000-000000000001"
RUN = "5f0f9f0e-0000-4000-8000-000000000002"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
LEAST = {"id": "e", "type": "a.b", "project_id": PROJECT, "time": "2026-03-01T12:00:00Z", "source": "x", "data": 1}
CAUSE = {"run_id": RUN, "depth": 1}
NAMES = [*LEAST, "subject", "cause", "trigger_id", "op", "schema", "table", "old", "changed", "unavailable", "lsn"]
odd = st.sampled_from(["cron", "cdc.INSERT.x", "INSERT", RUN, "0/0", CAUSE, ["a"], "", "\ud800", 10**400]) | values
spaces = st.sampled_from([None, 1])


@given(st.binary(max_size=40))
def test_any_bytes(raw: bytes) -> None:
    _tried(raw)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(NAMES), odd, max_size=6), spaces, st.booleans())
def test_any_members(changed: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    _tried(json.dumps({**LEAST, **changed}, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


WRITTEN = ["id", "type", "project_id", "time", "source", "subject", "trigger_id", "data", "op", "cause"]


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(WRITTEN), odd, max_size=4), st.sampled_from(["", ",", "}", '"data":2}']))
def test_it_makes_no_difference_how_a_message_is_spaced(changed: dict[str, object], after: str) -> None:
    body = {**LEAST, **changed}
    ordered = {name: body[name] for name in WRITTEN if name in body}
    texts = [json.dumps(ordered, separators=separators)[:-1] for separators in [(",", ":"), (" ,", ": ")]]
    tight, wide = (f"{text}{after}}}".encode() for text in texts)
    assert _found(tight) == _found(wide)


def _found(raw: bytes) -> object:
    try:
        event = decode(raw)
    except InvalidArgument as why:
        return why.metadata.get("field"), why.message.split(" at character")[0].split(": line")[0]
    return replace(event, data=cast(Any, event.data.value))


drafts = st.dictionaries(st.sampled_from(["type", "data", "id", "time", "subject", "source"]), odd, max_size=4)


@given(drafts | st.fixed_dictionaries({"events": st.lists(drafts | values, max_size=3) | values}), spaces)
def test_any_request(body: dict[str, object], indent: int | None) -> None:
    _tried(json.dumps(body, indent=indent).encode())


@given(values, spaces)
def test_parts_are_what_the_whole_is(value: object, indent: int | None) -> None:
    raw = json.dumps(value, indent=indent).encode()
    assert read(raw).value == value
    scanner = Scanner(raw)
    if isinstance(value, dict):
        assert {name: _again(scanner.value()) for name in scanner.members()} == value
    elif isinstance(value, list):
        assert [_again(scanner.value()) for _ in scanner.elements()] == value
    else:
        assert _again(scanner.value()) == value
    scanner.end()


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from(["{", "}", "[", "]", ",", '"a"', '"b":', '"c" :', " ", "1", '"', "\\"]), max_size=9).map(
        "".join
    )
)
def test_what_is_scanned_is_json(text: str) -> None:
    by_part: dict[str, object] = {}
    try:
        found = read(text.encode())
        scanner = Scanner(text.encode())
        by_part = {name: _again(scanner.value()) for name in scanner.members()}
        scanner.end()
    except JsonError:
        return
    assert found.value == by_part == json.loads(text)


def _again(part: Json) -> object:
    assert json.loads(part.text) == part.value
    return part.value


def _tried(raw: bytes) -> None:
    try:
        event = decode(raw)
    except InvalidArgument:
        pass
    else:
        assert decode(encode(event)) == event
    with contextlib.suppress(InvalidArgument):
        events_of(PROJECT, parse_body(raw))
