"""Events that somebody makes up, what they would do to a trigger, and when a schedule would fire."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from server.errors import FailedPrecondition, InvalidArgument
from server.triggers.diagnosis import Verdict, explained_of
from server.triggers.patterns import matches, matching
from server.triggers.previews import preview, preview_of
from server.triggers.rows import Record
from server.triggers.samples import event_of
from server.triggers.view import envelope_of

PROJECT = "7f1c2d5e-9a56-4c0b-8f43-5d3f6c1e2a90"
OTHER = "00000000-9a56-4c0b-8f43-5d3f6c1e2a90"
NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
RECORD = Record(
    id=OTHER,
    project_id=PROJECT,
    event_type="cdc.UPDATE.orders",
    config="{}",
    target_type="function",
    function_id=PROJECT,
    workflow_id=None,
    conditions='[{"field": "amount", "op": "gt", "value": 100}, {"field": "status", "op": "changed"}]',
    enabled=True,
    paused=False,
    retry="{}",
    order_key=None,
    concurrency=None,
    since=NOW,
    created_at=NOW,
    updated_at=NOW,
)
UPDATE: dict[str, Any] = {
    "type": "cdc.UPDATE.orders",
    "data": {"amount": "120.50", "status": "paid"},
    "old": {"amount": "120.50", "status": "new"},
    "changed": ["status"],
}


def test_a_sample_says_what_matters_and_the_rest_is_as_in_an_event() -> None:
    event = event_of(PROJECT, {"type": "order.paid", "data": {"n": 2**70, "odd": "\ud800"}}, NOW)
    assert (event.project_id, event.source, event.time) == (PROJECT, "api", NOW)
    assert event.data.value == {"n": 2**70, "odd": "\ud800"}
    assert event_of(PROJECT, {"type": "a"}, NOW).data.value is None


def test_a_change_has_operation_schema_and_table_from_its_type() -> None:
    envelope = envelope_of(event_of(PROJECT, UPDATE | {"type": "cdc.UPDATE.two%20words"}, NOW))
    assert (envelope["op"], envelope["table"]) == ("UPDATE", "two words")
    assert envelope["schema"] == "proj_" + PROJECT.replace("-", "")
    assert envelope["old"]["status"] == "new"
    own = envelope_of(event_of(PROJECT, UPDATE | {"schema": "archive"}, NOW))
    assert own["schema"] == "archive"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"type": ""}, "event.type"),
        ({"type": 5}, "event.type"),
        ({"type": "a b"}, "event.type"),
        ({"old": {}}, "event.old"),
        ({"trigger_id": OTHER}, "event.trigger_id"),
        ({"type": "cron"}, "event.trigger_id"),
        ({"project_id": OTHER}, "event.project_id"),
        ({"time": "yesterday"}, "event.time"),
        ({"cause": {"depth": 0}}, "event.cause.depth"),
        ({"payload": 1}, "event.payload"),
        ({"type": "cdc.UPDATE.orders", "changed": "status"}, "event.changed"),
        ({"type": "cdc.UPDATE.orders", "op": "MERGE"}, "event.op"),
        ({"data": "x" * 1_100_000}, "event"),
    ],
)
def test_a_wrong_sample_is_refused_by_name(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        event_of(PROJECT, {"type": "order.paid", "data": 1} | wrong, NOW)
    assert caught.value.field == field


def judged(record: Record, members: dict[str, Any]) -> tuple[Verdict, bool]:
    envelope = envelope_of(event_of(PROJECT, members, NOW))
    explained = explained_of(record, envelope, meant=matches(record.event_type, envelope["type"]))
    assert explained.why
    return explained.verdict, explained.conditions_hold


def test_every_verdict() -> None:
    assert judged(RECORD, UPDATE) == (Verdict.FIRES, True)
    assert judged(replace(RECORD, paused=True), UPDATE) == (Verdict.HELD, True)
    assert judged(replace(RECORD, enabled=False), UPDATE) == (Verdict.DROPPED, True)
    assert judged(replace(RECORD, enabled=False, paused=True), UPDATE) == (Verdict.DROPPED, True)
    assert judged(RECORD, UPDATE | {"changed": []}) == (Verdict.FIRES, True)
    assert judged(RECORD, UPDATE | {"changed": ["amount"]}) == (Verdict.CONDITIONS, False)
    assert judged(replace(RECORD, enabled=False), {"type": "order.paid"}) == (Verdict.TYPE, False)
    assert judged(replace(RECORD, conditions='[{"future": 1}]'), UPDATE) == (Verdict.UNREADABLE, False)
    cron = replace(RECORD, event_type="cron", config='{"schedule": "@hourly"}', conditions="[]")
    assert judged(cron, {"type": "cron", "trigger_id": OTHER}) == (Verdict.FIRES, True)
    assert judged(cron, {"type": "cron", "trigger_id": PROJECT}) == (Verdict.TICK, True)


@pytest.mark.parametrize("event_type", ["cron", "order", "order.paid", "cdc.INSERT.orders", "a.b.c.d.e.f.g.h"])
def test_all_patterns_that_mean_a_type_are_known(event_type: str) -> None:
    found = matching(event_type)
    assert len(found) == len(set(found)) < 256
    assert all(matches(pattern, event_type) for pattern in found)
    for pattern in ("order", "order.>", "order.*", "cdc.*.orders", "cdc.>", "cdc.*.*", "a.*.c.>", "cron"):
        assert (pattern in found) is matches(pattern, event_type)


def test_the_next_runs_in_utc_and_as_clocks_show_them() -> None:
    config = {"schedule": "30 2 * * *", "timezone": "Europe/Berlin"}
    found = preview(config, datetime(2026, 3, 28, 0, 0, tzinfo=UTC), 3)
    assert found.timezone == "Europe/Berlin"
    assert found.local == ["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    assert found.runs[0] == datetime(2026, 3, 28, 1, 30, tzinfo=UTC)
    assert len(preview({"schedule": "@hourly"}, NOW).runs) == 5


@pytest.mark.parametrize("count", [-1, 101, 1.5, "5", True])
def test_a_preview_is_bounded(count: object) -> None:
    with pytest.raises(InvalidArgument, match="from 0 to 100") as caught:
        preview({"schedule": "@hourly"}, NOW, count)
    assert caught.value.field == "count"


def test_a_preview_checks_its_config() -> None:
    with pytest.raises(InvalidArgument) as caught:
        preview({"schedule": "@hourly", "zone": "UTC"}, NOW)
    assert caught.value.field == "config.zone"


def test_only_a_schedule_has_next_runs() -> None:
    with pytest.raises(FailedPrecondition, match=r"cdc\.UPDATE\.orders"):
        preview_of(RECORD, NOW)
