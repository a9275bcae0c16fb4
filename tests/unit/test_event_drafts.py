"""Events as tenants send them: one or a batch, and which field of which event is wrong."""

from typing import Any

import orjson
import pytest

from server.errors import InvalidArgument
from server.events.drafts import MAX_EVENTS, MAX_REQUEST_BYTES, events_of, parse_body
from server.events.envelope import MAX_DATA_BYTES, Event

PROJECT = "5f0f9f0e-0000-4000-8000-000000000001"
ONE = {"type": "order.paid", "data": {"amount": 1}}


def parsed(body: Any) -> list[Event]:
    return events_of(PROJECT, parse_body(body if isinstance(body, bytes) else orjson.dumps(body)))


def test_one_event_with_what_is_left_out() -> None:
    (event,) = parsed(b'{"type": "order.paid", "data": {"n": 1.50}}')
    assert (event.type, event.project_id, event.source, event.subject) == ("order.paid", PROJECT, "api", None)
    assert event.data.text == '{"n": 1.50}'
    assert len(event.id) == 36
    assert event.cause is None


def test_one_event_with_everything() -> None:
    said = {"id": "e-1", "time": "2026-03-01T12:00:00Z", "subject": "o/1", "source": "shop"}
    (event,) = parsed({**ONE, **said})
    assert (event.id, event.time.isoformat(), event.subject, event.source) == (
        "e-1",
        "2026-03-01T12:00:00+00:00",
        "o/1",
        "shop",
    )


def test_a_batch_keeps_its_order() -> None:
    many = parsed({"events": [{**ONE, "id": str(number)} for number in range(MAX_EVENTS)]})
    assert [event.id for event in many] == [str(number) for number in range(MAX_EVENTS)]


def test_one_event_is_no_batch() -> None:
    assert not parse_body(orjson.dumps(ONE)).batch
    assert parse_body(orjson.dumps({"events": [ONE]})).batch


WRONG: list[tuple[str, Any]] = [
    *(("body", body) for body in (b"", b"null", b"[]", b"{", b'{"type":"a","type":"b","data":1}')),
    ("body", b" " * (MAX_REQUEST_BYTES + 1)),
    ("type", {"data": 1}),
    ("type", {"type": 1, "data": 1}),
    ("type", {"type": "cdc.INSERT.orders", "data": 1}),
    ("type", {"type": "cron", "data": 1}),
    ("type", {"type": "a b", "data": 1}),
    ("data", {"type": "a"}),
    ("id", {**ONE, "id": "a b"}),
    ("id", {**ONE, "id": 7}),
    ("time", {**ONE, "time": "tomorrow"}),
    ("subject", {**ONE, "subject": "a\nb"}),
    ("source", {**ONE, "source": "x" * 256}),
    *((name, {**ONE, name: None}) for name in ("project_id", "cause", "trigger_id", "Type", "op")),
    ("data", b'{"type":"a","data":"' + b"x" * MAX_DATA_BYTES + b'"}'),
    ("events", {"events": []}),
    ("events", {"events": {}}),
    ("events", {"events": [ONE] * (MAX_EVENTS + 1)}),
    ("type", {"events": [ONE], "type": "a"}),
    ("events[1]", {"events": [ONE, 1]}),
    ("events[1].type", {"events": [ONE, {"type": "cron", "data": 1}]}),
    ("events[1].id", {"events": [{**ONE, "id": "a"}, {**ONE, "id": "a"}]}),
    ("events[0].events", {"events": [{"events": []}]}),
]


@pytest.mark.parametrize(("field", "body"), WRONG)
def test_what_is_wrong_is_named(field: str, body: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parsed(body)
    assert caught.value.field == field
