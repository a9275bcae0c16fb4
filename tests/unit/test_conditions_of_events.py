"""Conditions on events as the stream carries them."""

from typing import Any

import orjson
import pytest

from server.events.envelope import decode
from server.triggers.conditions import evaluate
from server.triggers.parsing import parse
from server.triggers.view import envelope_of

PROJECT = "7f1c2d5e-9a56-4c0b-8f43-5d3f6c1e2a90"
RUN = "0a1c2d5e-9a56-4c0b-8f43-5d3f6c1e2a91"
UPDATE: dict[str, Any] = {
    "id": "16/B374D848-1",
    "type": "cdc.UPDATE.orders",
    "project_id": PROJECT,
    "time": "2026-01-31T09:00:00Z",
    "source": "cdc",
    "subject": "orders",
    "cause": {"run_id": RUN, "depth": 2},
    "data": {"id": 7, "amount": "12345678901234567890.10", "status": "paid"},
    "op": "UPDATE",
    "schema": "proj_1",
    "table": "orders",
    "old": {"id": 7, "amount": "1.00", "status": "new"},
    "changed": ["amount", "status"],
    "unavailable": ["note"],
    "lsn": "16/B374D848",
}


def holds(event: dict[str, Any], field: str, op: str, value: object = True) -> bool:
    conditions = parse([{"field": field, "op": op, "value": value}])
    return evaluate(conditions, envelope_of(decode(orjson.dumps(event))))


@pytest.mark.parametrize(
    ("field", "op", "value"),
    [
        ("amount", "gt", 12345678901234567890),
        ("status", "eq", "paid"),
        ("$old.status", "eq", "new"),
        ("status", "changed", True),
        ("id", "changed", False),
        ("note", "changed", False),
        ("note", "exists", False),
        ("$event.id", "eq", "16/B374D848-1"),
        ("$event.type", "suffix", ".orders"),
        ("$event.project_id", "eq", PROJECT),
        ("$event.time", "gte", "2026-01-31T09:00:00Z"),
        ("$event.source", "eq", "cdc"),
        ("$event.subject", "eq", "orders"),
        ("$event.cause.depth", "lt", 3),
        ("$event.cause.run_id", "eq", RUN),
        ("$event.op", "in", ["UPDATE"]),
        ("$event.schema", "prefix", "proj_"),
        ("$event.table", "eq", "orders"),
        ("$event.changed", "contains", "status"),
        ("$event.unavailable", "eq", ["note"]),
        ("$event.lsn", "exists", True),
        ("$event.trigger_id", "exists", False),
    ],
)
def test_a_change_of_the_database(field: str, op: str, value: object) -> None:
    assert holds(UPDATE, field, op, value)


def test_what_a_custom_event_does_not_have_is_missing() -> None:
    event = {name: UPDATE[name] for name in ("id", "project_id", "time", "source")} | {"type": "order.paid"}
    for field in ("$old.status", "$event.subject", "$event.cause", "$event.table", "$event.changed"):
        assert holds({**event, "data": {"a": None}}, field, "exists", False)
    assert holds({**event, "data": {"a": None}}, "a", "eq", None)
    assert holds({**event, "data": [5]}, "0", "eq", 5)
    assert holds({**event, "data": "text"}, "$event.data", "eq", "text")
