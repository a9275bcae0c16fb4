"""The envelope of events: what goes in comes out to the last digit, and nothing hostile gets through."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest

from server.errors import InvalidArgument
from server.events.envelope import (
    MAX_CAUSE_DEPTH,
    MAX_ENVELOPE_VALUES,
    MAX_EVENT_BYTES,
    MAX_ID_CHARS,
    MAX_TEXT_CHARS,
    Cause,
    Change,
    Event,
    decode,
    encode,
    parse_event_id,
    parse_time,
    spelled,
)
from server.events.json_text import MAX_DEPTH, MAX_VALUES, JsonError, Scanner, read
from server.events.stream import event_of
from server.host.origin import Origin
from server.host.publishing import Counted
from server.workflows.events import by_hand, members_of

PROJECT = "5f0f9f0e-0000-4000-8000-000000000001"
RUN = "5f0f9f0e-0000-4000-8000-000000000002"
TRIGGER = "5f0f9f0e-0000-4000-8000-000000000003"
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)

LEAST = {"id": "e1", "type": "order.paid", "project_id": PROJECT, "time": "2026-03-01T12:00:00Z", "source": "api"}
ROW = {"type": "cdc.UPDATE.orders", "op": "UPDATE", "schema": "public", "table": "orders"}


def body(**members: Any) -> bytes:
    """Of a message; a member that is … is left out."""
    whole = {**LEAST, "data": None, **members}
    return orjson.dumps({name: value for name, value in whole.items() if value is not ...})


EVENTS = [
    Event(id="e1", type="order.paid", project_id=PROJECT, time=NOON, source="api", data=read(b"null")),
    Event(
        id="e2",
        type="storage.upload",
        project_id=PROJECT,
        time=NOON.replace(microsecond=0),
        source="storage",
        subject="avatars/ä.png",
        cause=Cause(run_id=RUN, trigger_id=TRIGGER, depth=3),
        data=read(b'{"z": 12345678901234567890123, "a": 1.10, "s": "\\ud800"}'),
    ),
    Event(
        id="e3",
        type="cdc.UPDATE.orders",
        project_id=PROJECT,
        time=NOON,
        source="cdc",
        data=read(b'{"id": 1}'),
        change=Change(
            op="UPDATE", schema="public", table="orders", old=read(b'{"id":0}'), changed=("id",), lsn="16/B374D848"
        ),
    ),
    Event(id="e4", type="cron", project_id=PROJECT, time=NOON, source="cron", trigger_id=TRIGGER, data=read(b"{}")),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: str(event.type))
def test_what_is_encoded_is_decoded(event: Event) -> None:
    assert decode(encode(event)) == event
    assert encode(decode(encode(event))) == encode(event), "an outbox that publishes again publishes the same bytes"


def test_data_stays_as_it_was_written() -> None:
    text = b'{"z": 12345678901234567890123, "a": 1.10e2, "a b": [ 1 ,2 ]}'
    raw = encode(Event(id="e", type="a", project_id=PROJECT, time=NOON, source="api", data=read(b" " + text + b"\n")))
    assert text in raw
    assert decode(raw).data.value["z"] == 12345678901234567890123


def test_the_project_is_told_in_lower_case_and_members_of_a_newer_version_are_left_out() -> None:
    event = decode(body(project_id=PROJECT.upper(), specversion="1.0", subject=None, cause=None, data={"a": 1}))
    assert (event.project_id, event.subject, event.cause, event.data.value) == (PROJECT, None, None, {"a": 1})


def test_a_table_may_be_called_anything() -> None:
    event = decode(body(**{**ROW, "table": " \n", "changed": ["\x01"]}))
    assert event.change
    assert (event.change.table, event.change.changed) == (" \n", ("\x01",))


def test_members_of_another_family_do_not_count() -> None:
    event = decode(body(trigger_id=TRIGGER, op="INSERT", schema="s", table="t"))
    assert (event.trigger_id, event.change) == (None, None)


WRONG: list[tuple[str, dict[str, Any]]] = [
    *((name, {name: ...}) for name in (*LEAST, "data")),
    *((name, {name: 1}) for name in (*LEAST, "subject")),
    *((name, {name: ["x"]}) for name in LEAST),
    *(("id", {"id": value}) for value in ("a b", "a\n", "ä", "x" * 129, "\x7f")),
    *(("type", {"type": value}) for value in ("a..b", "a.*", ">", "a b")),
    *(("project_id", {"project_id": value}) for value in ("1", PROJECT + "0", "x" * 36)),
    *(("time", {"time": value}) for value in ("2026-03-01", "2026-02-30T00:00:00Z", "2026-03-01T12:00:00", "now")),
    *(("source", {"source": value}) for value in (" ", "x" * 256, "a\nb")),
    *(("subject", {"subject": value}) for value in (" ", "", "x" * 256, "a\0b")),
    *(("cause", {"cause": cause}) for cause in (["x"], "x", 1)),
    *(
        ("cause.depth", {"cause": {"run_id": RUN, "depth": depth}})
        for depth in (0, -1, True, 1.0, "1", None, MAX_CAUSE_DEPTH + 1, 2**63)
    ),
    *(("cause.run_id", {"cause": {"run_id": run_id, "depth": 1}}) for run_id in (None, 1, "x")),
    ("cause.trigger_id", {"cause": {"run_id": RUN, "trigger_id": [], "depth": 1}}),
    ("trigger_id", {"type": "cron"}),
    ("trigger_id", {"type": "cron", "trigger_id": "x"}),
    ("op", {**ROW, "op": "update"}),
    ("table", {**ROW, "table": ...}),
    *(("schema", {**ROW, "schema": value}) for value in ("", "x" * 256)),
    ("unavailable", {**ROW, "unavailable": [""]}),
    ("changed", {**ROW, "changed": "id"}),
    ("changed", {**ROW, "changed": [1]}),
    ("unavailable", {**ROW, "unavailable": ["a"] * 1601}),
    ("lsn", {**ROW, "lsn": "16-B374D848"}),
]


@pytest.mark.parametrize(("field", "changed"), WRONG)
def test_a_wrong_member_is_named(field: str, changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(body(**changed))
    assert caught.value.field == field


NO_EVENTS = [
    *(b"", b" ", b"null", b"1", b"[]", b'"x"', b"{", b'{"id":}', b'{"id":1,}', b"\xff", b"\xef\xbb\xbf{}", b"{} {}"),
    *(b'{"data":NaN}', b'{"data":-Infinity}', b'{"data":01}', b'{"data":"\n"}', b"{}\0"),
    b'{"data":' + b"9" * 5000 + b"}",
    b'{"data":' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
    b'{"data":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
    b'{"data":[' + b"0," * MAX_ENVELOPE_VALUES + b"0]}",
    b'{"id":"a","id":"b"}',
    b"x" * (MAX_EVENT_BYTES + 1),
]


def test_whatever_data_a_request_may_have_can_be_read_in_its_envelope() -> None:
    """However many commas and brackets id, source and subject have."""
    data = read(b"[" + b"0," * (MAX_VALUES - 1) + b"0]")
    for crowd in ("", "[{,"):
        event = Event(
            id=(crowd * MAX_ID_CHARS)[:MAX_ID_CHARS] or "e",
            type="order.paid",
            project_id=PROJECT,
            time=NOON,
            source=(crowd * MAX_TEXT_CHARS)[:MAX_TEXT_CHARS] or "api",
            data=data,
            subject=(crowd * MAX_TEXT_CHARS)[:MAX_TEXT_CHARS] or None,
            cause=Cause(run_id=RUN, trigger_id=TRIGGER, depth=MAX_CAUSE_DEPTH),
        )
        assert decode(encode(event)) == event
        assert members_of(encode(event))["data"] == data.value
    assert members_of(by_hand(PROJECT, RUN, data, NOON))["data"] == data.value
    with pytest.raises(JsonError):
        read(b"[" + b"0," * MAX_VALUES + b"0]")


@pytest.mark.parametrize("data", [b"0," * (MAX_VALUES - 1) + b"0", b"0," * (MAX_VALUES - 4) + b"0"])
def test_what_a_function_publishes_can_be_read(data: bytes) -> None:
    counted = Counted(PROJECT, Origin(run_id=RUN, event_id="e", trigger_id=TRIGGER, depth=MAX_CAUSE_DEPTH))
    event = counted.event("publish", "order.paid", b"[" + data + b"]", "", "")
    assert decode(encode(event)) == event


@pytest.mark.parametrize(
    ("origin", "whole"),
    [
        (Origin(run_id=RUN), f"whole/run/{RUN}"),
        (Origin(run_id=RUN, event_id="e", trigger_id=TRIGGER), f"whole/event/{TRIGGER}/e"),
        (Origin(run_id=RUN, event_id="e", trigger_id=TRIGGER, step="w/n"), "whole/workflow/w/n"),
    ],
)
def test_the_mark_of_a_whole_run_is_that_of_no_transaction(origin: Origin, whole: str) -> None:
    assert origin.whole_mark == whole
    for name in ("", "whole", "/", "../whole"):
        assert origin.mark(name) == f"{whole.removeprefix('whole/')}/{name}"
        assert not origin.mark(name).startswith("whole/")


@pytest.mark.parametrize("raw", NO_EVENTS, ids=lambda raw: repr(raw[:16]))
def test_what_is_no_event_says_why(raw: bytes) -> None:
    with pytest.raises(InvalidArgument, match="event"):
        decode(raw)


def test_an_event_belongs_to_its_subject() -> None:
    assert event_of("atlasdb.events.order.paid", body()).id == "e1"
    with pytest.raises(InvalidArgument) as caught:
        event_of("atlasdb.events.order.unpaid", body())
    assert caught.value.field == "type"


@pytest.mark.parametrize(
    ("written", "utc"),
    [
        ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z"),
        ("2026-03-01t12:00:00.5z", "2026-03-01T12:00:00.500000Z"),
        ("2026-03-01T01:00:00.123456789+02:00", "2026-02-28T23:00:00.123456Z"),
    ],
)
def test_times_are_utc(written: str, utc: str) -> None:
    assert spelled(parse_time("time", written)) == utc


def test_times_at_the_ends_of_the_calendar_are_refused_and_no_fault() -> None:
    for written in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-03-01T24:00:01Z"):
        with pytest.raises(InvalidArgument):
            parse_time("time", written)
    assert spelled(datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=1)))) == "2026-02-28T23:00:00Z"


def test_ids_are_printable() -> None:
    assert parse_event_id("id", "cron:!~/") == "cron:!~/"


class TestJson:
    def test_parts_keep_their_text(self) -> None:
        scanner = Scanner(b' { "a" : [ 1.0 , { } , "]" ] , "b" : 1e2, "c":[ ] , "d": { } } ')
        found: dict[str, Any] = {}
        for name in scanner.members():
            if name in "ac":
                found[name] = [scanner.value().text for _ in scanner.elements()]
            else:
                found[name] = scanner.value().text
        scanner.end()
        assert found == {"a": ["1.0", "{ }", '"]"'], "b": "1e2", "c": [], "d": "{ }"}

    def test_brackets_in_strings_are_no_depth(self) -> None:
        text = "[" * (MAX_DEPTH + 1)
        assert read(orjson.dumps(text)).value == text
        assert read(orjson.dumps([text])).value == [text]

    def test_a_number_too_long_is_said_so(self) -> None:
        with pytest.raises(JsonError, match=r"^a whole number has more than \d+ digits$"):
            read(b"9" * 5000)

    def test_nesting_to_the_limit(self) -> None:
        read(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
        with pytest.raises(JsonError, match="deeper"):
            read(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))

    @pytest.mark.parametrize(
        "text", [b"[]", b"1", b'{"a"}', b"{,}", b'{"a":1,}', b'{"a":1', b'{"a', b"{1:1}", b'{"a":1]']
    )
    def test_what_is_no_object_has_no_members(self, text: bytes) -> None:
        scanner = Scanner(text)
        with pytest.raises(JsonError):
            _ = [scanner.value() for _ in scanner.members()]

    @pytest.mark.parametrize("text", [b"{}", b"1", b"[,]", b"[1,]", b"[1", b"[1}"])
    def test_what_is_no_array_has_no_elements(self, text: bytes) -> None:
        scanner = Scanner(text)
        with pytest.raises(JsonError):
            _ = [scanner.value() for _ in scanner.elements()]
