"""`atlas events`, `triggers` and `deliveries` against an API of their own: what they ask for, and what they print."""

import json
from pathlib import Path
from typing import Any

import pytest

from atlas.deliveries.v1 import deliveries_pb2
from atlas.triggers.v1 import triggers_pb2, triggers_service_pb2
from tests.fix_cli import PROJECT_ID, Atlas
from tests.fix_cli_events import FakeEventApi


@pytest.mark.parametrize("command", ["events", "events publish", "triggers", "triggers create", "deliveries"])
def test_help(command: str, atlas: Atlas) -> None:
    ran = atlas(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: atlas {command}" in ran.out


# Events


def test_an_event_is_published_with_its_digits(event_api: FakeEventApi, to_event_api: Atlas, tmp_path: Path) -> None:
    ran = to_event_api("events", "publish", "order.paid", "--data", '{"a": 1.10, "n": 12345678901234567890.5}')
    assert (ran.code, ran.out, ran.err) == (0, "made\n", "")
    assert event_api.asked[-1].project_id == PROJECT_ID
    assert event_api.bodies[-1] == b'{"type": "order.paid", "data": {"a": 1.10, "n": 12345678901234567890.5}}'
    (tmp_path / "order.json").write_text("[1]")
    given = ("--data", "@order.json", "--id", '4"7', "--subject", "s", "--source", "shop")
    assert to_event_api("events", "publish", "order.paid", *given, "--json").json["sequence"] == 1
    assert event_api.body == {"type": "order.paid", "id": '4"7', "subject": "s", "source": "shop", "data": [1]}
    assert to_event_api("events", "publish", "order.paid").code == 0
    assert event_api.body["data"] is None


def test_an_event_that_was_there_is_told(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    event_api.duplicate = True
    ran = to_event_api("events", "publish", "order.paid", "--id", "4711", "--data", "-", stdin="1")
    assert ran.out == "4711\n"
    assert "was there already" in ran.err


def test_data_that_is_no_json_is_not_sent(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    ran = to_event_api("events", "publish", "order.paid", "--data", "{")
    assert ran.code == 2
    assert "--data is not JSON" in ran.err
    assert not event_api.asked


# Triggers


def test_a_trigger_is_made_of_options(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    function = event_api.add("receipt")
    conditions = ("--when", "amount", "gt", "100", "--when", "status", "eq", "paid", "--when", "note", "exists", "true")
    ran = to_event_api(
        *("triggers", "create", "--on", "order.paid", "--function", "receipt", *conditions),
        *("--attempts", "3", "--order-key", "customer", "--concurrency", "2", "--paused"),
    )
    assert ran.code == 0
    assert ran.out.endswith(": order.paid, paused\n")
    assert event_api.body == {
        "event_type": "order.paid",
        "target_type": "function",
        "function_id": function.id,
        "conditions": [
            {"field": "amount", "op": "gt", "value": 100},
            {"field": "status", "op": "eq", "value": "paid"},
            {"field": "note", "op": "exists", "value": True},
        ],
        "retry": {"attempts": 3},
        "order_key": "customer",
        "concurrency": 2,
        "paused": True,
    }


def test_a_schedule_makes_a_cron_trigger(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    workflow_id = event_api.add_workflow("nightly")
    schedule = ("--schedule", "0 6 * * *", "--timezone", "Europe/Berlin", "--catch-up", "60", "--overlap", "skip")
    made = to_event_api("triggers", "create", *schedule, "--workflow", "nightly", "--disabled", "--json").json
    assert event_api.body == {
        "event_type": "cron",
        "config": {"schedule": "0 6 * * *", "timezone": "Europe/Berlin", "catch_up_s": 60, "overlap": "skip"},
        "target_type": "workflow",
        "workflow_id": workflow_id,
        "enabled": False,
    }
    assert made["enabled"] is False


def test_a_trigger_is_made_of_a_file_and_options_go_before_it(
    event_api: FakeEventApi, to_event_api: Atlas, tmp_path: Path
) -> None:
    whole = {"event_type": "cron", "config": {"schedule": "@daily", "overlap": "skip"}, "target_type": "workflow"}
    (tmp_path / "trigger.json").write_text(json.dumps(whole))
    assert to_event_api("triggers", "create", "--file", "trigger.json", "--timezone", "Asia/Tokyo").code == 0
    assert event_api.body == {**whole, "config": {**whole["config"], "timezone": "Asia/Tokyo"}}  # type: ignore[dict-item]
    assert to_event_api("triggers", "create", "--file", "-", stdin=json.dumps(whole)).code == 0
    assert event_api.body == whole
    assert to_event_api("triggers", "create", "--file", "-", stdin="[]").code == 2
    assert to_event_api("triggers", "create", "--file", "none.json").code == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("create", "--function", "f", "--workflow", "w"), 2),
        (("create", "--on", "a", "--function", "helo"), 3),
        (("update", "x"), 2),
        (("explain",), 2),
        (("explain", "a.b", "--event", "{}"), 2),
        (("explain", "--event", "[1]"), 2),
        (("preview",), 2),
        (("preview", "x", "--schedule", "@hourly"), 2),
        (("get", "00000000-0000-0000-0000-000000000000"), 3),
    ],
)
def test_what_cannot_be_meant(
    arguments: tuple[str, ...], code: int, event_api: FakeEventApi, to_event_api: Atlas
) -> None:
    ran = to_event_api("triggers", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert not event_api.bodies


def test_a_trigger_is_changed_where_it_is_said(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    config = {"schedule": "@daily", "timezone": "Asia/Tokyo"}
    trigger_id = event_api.add_trigger(event_type="cron", config=config, target_type="function")
    assert to_event_api("triggers", "update", trigger_id, "--schedule", "@hourly", "--attempts", "9").code == 0
    assert event_api.body == {
        "config": {"schedule": "@hourly", "timezone": "Asia/Tokyo"},
        "retry": {"attempts": 9, "backoff_ms": 1000},
    }
    assert (
        to_event_api("triggers", "update", trigger_id, "--order-key", "", "--concurrency", "0", "--disabled").code == 0
    )
    assert event_api.body == {"order_key": None, "concurrency": None, "enabled": False}


def test_triggers_are_listed_from_all_pages(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    function = event_api.add("receipt")
    conditions = [{"field": "a", "op": "eq", "value": 1}]
    first = event_api.add_trigger(
        event_type="order.paid", target_type="function", function_id=function.id, conditions=conditions
    )
    event_api.add_trigger(
        event_type="cron", config={"schedule": "@daily"}, target_type="workflow", workflow_id="w1", paused=True
    )
    event_api.add_trigger(event_type="a.b", target_type="function", function_id="gone", enabled=False)
    lines = [line.split() for line in to_event_api("triggers").out.splitlines()]
    assert lines[0] == ["TRIGGER", "EVENT", "TARGET", "CONDITIONS", "STATE"]
    assert lines[1] == [first, "order.paid", "function", "receipt", "1", "enabled"]
    assert lines[2][1:] == ["cron", "@daily", "UTC", "workflow", "w1", "0", "paused"]
    assert lines[3][1:] == ["a.b", "function", "gone", "0", "disabled"]
    assert len(to_event_api("triggers", "--json").json["triggers"]) == 3
    assert to_event_api("triggers", "get", first).json["conditions"] == conditions


def test_pause_resume_and_delete(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    trigger_id = event_api.add_trigger(event_type="a.b", target_type="function", function_id="f")
    assert to_event_api("triggers", "pause", trigger_id).out == f"Paused {trigger_id}: a.b, paused\n"
    assert to_event_api("triggers", "resume", trigger_id, "--json").json["paused"] is False
    assert to_event_api("triggers", "delete", trigger_id).code == 0
    assert event_api.triggers == {}


def test_an_event_is_explained(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    condition = triggers_pb2.ExplainedCondition(
        at="conditions[0]", field="amount", op="gt", wanted="100", actual="99", why="99 is not greater than 100"
    )
    event_api.explained = triggers_service_pb2.ExplainEventResponse(
        triggers=[
            triggers_pb2.ExplainedTrigger(
                trigger_id="t1", event_type="order.paid", verdict="conditions_do_not_hold", conditions=[condition]
            )
        ],
        left_out=2,
    )
    ran = to_event_api("triggers", "explain", "order.paid", "--data", '{"amount": 99.0}', "--trigger", "t1")
    assert event_api.bodies[-1] == (b'{"event": {"type": "order.paid", "data": {"amount": 99.0}}, "trigger_id": "t1"}')
    assert "conditions_do_not_hold" in ran.out
    assert "amount gt 100  does not hold: 99 is not greater than 100" in ran.out
    assert "2 more" in ran.err
    event = {"type": "cdc.UPDATE.orders", "data": {}, "old": {}}
    assert to_event_api("triggers", "explain", "--event", "-", "--json", stdin=json.dumps(event)).json["left_out"] == 2
    assert event_api.body == {"event": event, "trigger_id": ""}


def test_schedules_are_previewed(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    lines = to_event_api("triggers", "preview", "t1", "--count", "2").out.splitlines()
    assert [line.split() for line in lines] == [
        ["UTC", "Europe/Berlin"],
        ["2026-07-01T06:00:00Z", "2026-07-01T08:00:00+02:00"],
        ["2026-07-02T06:00:00Z", "2026-07-02T08:00:00+02:00"],
    ]
    told = to_event_api("triggers", "preview", "--schedule", "@daily", "--timezone", "Europe/Berlin", "--json").json
    assert event_api.body == {"config": {"schedule": "@daily", "timezone": "Europe/Berlin"}, "count": 5}
    assert len(told["runs"]) == 5


# Deliveries


def a_delivery(number: int, **fields: Any) -> deliveries_pb2.Delivery:
    made = deliveries_pb2.Delivery(
        id=f"d{number}", trigger_id="t1", event_id=f"e{number}", event_type="order.paid", state="dead", **fields
    )
    made.created_at.FromSeconds(1_700_000_000 + number)
    return made


def test_deliveries_are_listed_by_what_is_asked(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    event_api.deliveries = [a_delivery(2, outcome="exception", attempts=5), a_delivery(1)]
    lines = to_event_api("deliveries").out.splitlines()
    assert lines[0].split() == ["TIME", "EVENT", "STATE", "OUTCOME", "ATTEMPTS", "TRIGGER", "DELIVERY"]
    assert [line.split()[-1] for line in lines[1:]] == ["d2", "d1"]
    given = ("--trigger", "t1", "--event", "e1", "--type", "order.paid", "--state", "dead", "--outcome", "exception")
    found = to_event_api("deliveries", *given, "--since", "1h", "--until", "1m", "--limit", "1", "--json").json
    assert [item["id"] for item in found["deliveries"]] == ["d2"]
    asked = event_api.asked[-1]
    assert (asked.trigger, asked.event, asked.event_type, asked.state) == ("t1", "e1", "order.paid", "dead")
    assert (asked.outcome, asked.page_size) == ("exception", 1)
    assert 3500 < asked.until.seconds - asked.since.seconds < 3600


def test_a_delivery_is_shown_with_its_attempts(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    error = deliveries_pb2.DeliveryError(reason="FUNCTION_EXCEPTION", message="Error: boom")
    attempts = [deliveries_pb2.Attempt(number=1, run_id="r1", outcome="exception", error=error)]
    attempts[0].ended_at.FromSeconds(1_700_000_010)
    attempts.append(deliveries_pb2.Attempt(number=2, run_id="r2"))
    event_api.deliveries = [a_delivery(1, error=error, replays=1, history=attempts, event='{"id": "e1"}')]
    said = to_event_api("deliveries", "get", "d1").out
    assert "FUNCTION_EXCEPTION: Error: boom" in said
    assert "exception  run r1" in said
    assert "runs  run r2" in said
    assert "replayed 1 times" in said
    assert said.endswith('{"id": "e1"}\n')
    assert to_event_api("deliveries", "get", "d1", "--json").json["event"] == {"id": "e1"}


def test_deliveries_are_replayed_one_by_one_or_by_filter(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    event_api.deliveries = [a_delivery(1), a_delivery(2)]
    assert to_event_api("deliveries", "replay", "d1").out == "1 delivery runs again\n"
    assert to_event_api("deliveries", "replay", "d1", "d2", "--json").json == {"replayed": 2}
    assert event_api.asked[-1].delivery_id == "d2"
    given = ("--trigger", "t1", "--outcome", "exception", "--reason", "FUNCTION_EXCEPTION", "--since", "1d")
    assert to_event_api("deliveries", "replay", *given).out == "14 deliveries run again\n"
    asked = event_api.asked[-1]
    assert (asked.trigger, asked.outcome, asked.reason) == ("t1", "exception", "FUNCTION_EXCEPTION")
    assert (asked.HasField("since"), asked.HasField("until"), asked.page_token) == (True, False, "more")
    assert to_event_api("deliveries", "replay", "--all").code == 0
    seen = len(event_api.asked)
    for unclear in ((), ("d1", "--all"), ("d1", "--outcome", "exception")):
        assert to_event_api("deliveries", "replay", *unclear).code == 2
    assert len(event_api.asked) == seen


def test_a_delivery_is_cancelled(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    event_api.deliveries = [a_delivery(1)]
    assert to_event_api("deliveries", "cancel", "d1").out == "d1: cancelled\n"
    assert to_event_api("deliveries", "cancel", "d1", "--json").json["state"] == "cancelled"
