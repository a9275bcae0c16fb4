"""What a trigger may be when it is written: each member by its own rule, all of them together, and errors that name."""

from typing import Any

import orjson
import pytest

from server.errors import InvalidArgument
from server.events.json_text import Json, read
from server.triggers.drafts import MAX_CONDITIONS_BYTES, Draft, drafted, redrafted

FUNCTION = "7f1c2d5e-9a56-4c0b-8f43-5d3f6c1e2a90"
WORKFLOW = "0e0c2d5e-9a56-4c0b-8f43-5d3f6c1e2a91"
ORDER: dict[str, Any] = {"event_type": "cdc.INSERT.orders", "target_type": "function", "function_id": FUNCTION}
HOURLY: dict[str, Any] = {
    "event_type": "cron",
    "config": {"schedule": "0 * * * *"},
    "target_type": "workflow",
    "workflow_id": WORKFLOW,
}


def members(**fields: Any) -> dict[str, Json]:
    return {name: read(orjson.dumps(value)) for name, value in fields.items()}


def refused(given: dict[str, Any], draft: Draft | None = None) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        drafted(members(**given)) if draft is None else redrafted(draft, members(**given))
    assert caught.value.field
    return caught.value


def test_the_specifications_triggers() -> None:
    condition = {"field": "amount", "op": "gt", "value": 100}
    draft = drafted(members(**ORDER, conditions=[condition], enabled=True))
    assert (draft.event_type, draft.target, draft.enabled) == ("cdc.INSERT.orders", ("function_id", FUNCTION), True)
    assert draft.conditions.value == [condition]
    hourly = drafted(members(**HOURLY, enabled=True))
    assert (hourly.config.value, hourly.target) == ({"schedule": "0 * * * *"}, ("workflow_id", WORKFLOW))


def test_defaults() -> None:
    draft = drafted(members(**ORDER))
    assert (draft.config.text, draft.conditions.text, draft.retry.text) == ("{}", "[]", "{}")
    assert (draft.enabled, draft.paused, draft.order_key, draft.concurrency) == (True, False, None, None)


def test_an_id_that_is_null_is_absent() -> None:
    nulls = {"workflow_id": None, "order_key": None, "concurrency": None}
    assert drafted(members(**ORDER, **nulls)) == drafted(members(**ORDER))


def test_ids_in_upper_case_are_the_same_ids() -> None:
    assert drafted(members(**ORDER | {"function_id": FUNCTION.upper()})).function_id == FUNCTION


def test_digits_of_conditions_are_kept() -> None:
    text = '[{"field": "n", "op": "eq", "value": 12345678901234567890.10}]'
    draft = drafted(members(**ORDER) | {"conditions": read(text.encode())})
    assert draft.conditions.text == text


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"event_type": ""}, "event_type", "missing"),
    ({"event_type": 7}, "event_type", "a number; it must be a string"),
    ({"event_type": None}, "event_type", "null"),
    ({"event_type": "cdc.MERGE.orders"}, "event_type", "cdc.MERGE.orders"),
    ({"event_type": "cron.hourly"}, "event_type", "cron.hourly"),
    ({"event_type": "*.orders"}, "event_type", "first token"),
    ({"event_type": "cron"}, "config.schedule", "missing"),
    ({"config": None}, "config", "null"),
    ({"config": []}, "config", "an array; it must be an object"),
    ({"config": {"schedule": "0 * * * *"}}, "config.schedule", "the family cdc have none"),
    ({"target_type": "webhook"}, "target_type", "one of function, workflow"),
    ({"function_id": None}, "function_id", "missing"),
    ({"function_id": "hello"}, "function_id", "must be a UUID"),
    ({"function_id": 5}, "function_id", "a number"),
    ({"workflow_id": WORKFLOW}, "workflow_id", "one target"),
    ({"conditions": None}, "conditions", "null"),
    ({"conditions": {}}, "conditions", "an object; it must be an array"),
    ({"conditions": [{"field": "a", "op": "like", "value": 1}]}, "conditions[0].op", "like"),
    ({"conditions": [{"field": "a", "op": "gt", "value": []}]}, "conditions[0].value", "a number or a string"),
    ({"enabled": "true"}, "enabled", '"true"; it must be true or false'),
    ({"enabled": 1}, "enabled", "a number"),
    ({"paused": None}, "paused", "null"),
    ({"retry": 3}, "retry", "a number; it must be an object"),
    ({"retry": None}, "retry", "null"),
    ({"retry": {"attempts": 0}}, "retry.attempts", "is 0; it must be a whole number from 1 to 20"),
    ({"retry": {"attempts": 21}}, "retry.attempts", "is 21"),
    ({"retry": {"attempts": 1.5}}, "retry.attempts", "is 1.5"),
    ({"retry": {"attempts": True}}, "retry.attempts", "is true"),
    ({"retry": {"attempts": "5"}}, "retry.attempts", 'is "5"'),
    ({"retry": {"attempts": None}}, "retry.attempts", "is null"),
    ({"retry": {"backoff_ms": 9}}, "retry.backoff_ms", "from 10 to 3600000"),
    ({"retry": {"max_backoff_ms": 86_400_001}}, "retry.max_backoff_ms", "86400001"),
    ({"retry": {"backoff_ms": 500, "max_backoff_ms": 499}}, "retry.max_backoff_ms", "at least backoff_ms, 500"),
    ({"retry": {"max_age_s": 604_801}}, "retry.max_age_s", "from 1 to 604800"),
    ({"retry": {"jitter": 1}}, "retry.jitter", '"jitter"'),
    ({"retry": {"on": "exception"}}, "retry.on", "a string; it must be an array"),
    ({"retry": {"on": ["oops"]}}, "retry.on[0]", '"oops"'),
    ({"retry": {"on": [["ok"]]}}, "retry.on[0]", "an array"),
    ({"retry": {"on": ["exception", "fuel_limit"]}}, "retry.on[1]", "would end the same way again"),
    ({"order_key": ""}, "order_key", "missing"),
    ({"order_key": 5}, "order_key", "a number"),
    ({"order_key": "a..b"}, "order_key", "a..b"),
    ({"order_key": "$row.id"}, "order_key", "$old and $event"),
    ({"order_key": "a\0b"}, "order_key", "U+0000"),
    ({"order_key": "a\nb"}, "order_key", "U+000A"),
    ({"concurrency": 0}, "concurrency", "from 1 to 1000"),
    ({"concurrency": 1001}, "concurrency", "1001"),
    ({"concurrency": "many"}, "concurrency", '"many"'),
    ({"name": "orders"}, "name", '"name" is not a member'),
    ({"id": FUNCTION}, "id", "not a member"),
    ({"eventType": "a"}, "eventType", "not a member"),
    ({"x" * 500: 1}, "x" * 40, "not a member"),
]


@pytest.mark.parametrize(("wrong", "field", "told"), REFUSED)
def test_what_is_wrong_is_named_with_its_value_when_created_and_when_changed(
    wrong: dict[str, Any], field: str, told: str
) -> None:
    error = refused(ORDER | wrong)
    assert error.field == field
    assert told in error.message
    assert len(error.message) < 1000
    if wrong.keys() != {"function_id"} or wrong["function_id"] is not None:
        assert refused(wrong, drafted(members(**ORDER))).field == field


def test_a_target_of_another_type_is_refused() -> None:
    error = refused(ORDER | {"target_type": "workflow"})
    assert (error.field, FUNCTION in error.message) == ("function_id", True)


@pytest.mark.parametrize("name", ["event_type", "target_type", "function_id"])
def test_what_is_required(name: str) -> None:
    assert refused({other: value for other, value in ORDER.items() if other != name}).field == name


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "config.schedule"),
        ({"schedule": "every hour"}, "config.schedule"),
        ({"schedule": "0 0 30 2 *"}, "config.schedule"),
        ({"schedule": "* * * * *", "timezone": "Mars/Olympus"}, "config.timezone"),
        ({"schedule": "* * * * *", "catch_up_s": -1}, "config.catch_up_s"),
        ({"schedule": "* * * * *", "overlap": "merge"}, "config.overlap"),
        ({"schedule": "* * * * *", "tz": "UTC"}, "config.tz"),
        ({"schedule": "* * * * *", "": 1}, "config."),
    ],
)
def test_the_config_of_cron(config: dict[str, Any], field: str) -> None:
    assert refused(HOURLY | {"config": config}).field == field


def test_a_schedule_has_no_order_key() -> None:
    assert refused(HOURLY | {"order_key": "id"}).field == "order_key"
    ordered = drafted(members(**ORDER, order_key="customer.id"))
    error = refused({"event_type": "cron", "config": {"schedule": "@hourly"}}, ordered)
    assert error.field == "order_key"


def test_conditions_are_bounded_in_bytes() -> None:
    spaces = " " * MAX_CONDITIONS_BYTES
    with pytest.raises(InvalidArgument, match="65538 bytes") as caught:
        drafted(members(**ORDER) | {"conditions": read(f"[{spaces}]".encode())})
    assert caught.value.field == "conditions"


class TestChanges:
    draft = drafted(
        members(
            **ORDER, order_key="id", concurrency=3, retry={"attempts": 2}, conditions=[{"field": "a", "op": "exists"}]
        )
    )

    def test_what_is_absent_stays(self) -> None:
        assert redrafted(self.draft, {}) == self.draft
        disabled = redrafted(self.draft, members(enabled=False))
        assert (disabled.enabled, disabled.order_key, disabled.concurrency) == (False, "id", 3)
        assert (disabled.retry.value, disabled.conditions) == ({"attempts": 2}, self.draft.conditions)

    def test_null_clears_what_may_be_absent(self) -> None:
        cleared = redrafted(self.draft, members(order_key=None, concurrency=None))
        assert (cleared.order_key, cleared.concurrency) == (None, None)

    def test_empty_is_a_value(self) -> None:
        assert redrafted(self.draft, members(conditions=[])).conditions.text == "[]"
        assert redrafted(self.draft, members(retry={})).retry.text == "{}"

    def test_another_target_takes_the_place_of_the_old_one(self) -> None:
        changed = redrafted(self.draft, members(target_type="workflow", workflow_id=WORKFLOW))
        assert (changed.function_id, changed.target) == (None, ("workflow_id", WORKFLOW))
        assert refused({"workflow_id": WORKFLOW}, self.draft).field == "workflow_id"
        assert refused({"target_type": "workflow"}, self.draft).field == "workflow_id"
        assert refused({"function_id": None}, self.draft).field == "function_id"

    def test_type_and_config_are_judged_together(self) -> None:
        hourly = drafted(members(**HOURLY))
        assert refused({"event_type": "order.paid"}, hourly).field == "config.schedule"
        assert redrafted(hourly, members(event_type="order.paid", config={})).config.value == {}
        assert redrafted(hourly, members(config={"schedule": "@daily"})).config.value == {"schedule": "@daily"}

    def test_what_a_newer_version_wrote_is_not_judged_by_a_change_of_something_else(self) -> None:
        newer = Draft(
            event_type="cdc.INSERT.orders",
            config=read(b'{"slot": 7}'),
            target_type="function",
            function_id=FUNCTION,
            conditions=read(b'[{"future": 1}]'),
            retry=read(b'{"budget": 5}'),
        )
        assert redrafted(newer, members(enabled=False)).config == newer.config
        assert refused({"event_type": "cdc.UPDATE.orders"}, newer).field == "config.slot"


def test_a_retry_policy_is_stored_as_far_as_it_differs() -> None:
    given = {"attempts": 5.0, "backoff_ms": 2000, "on": ["crashed", "exception", "crashed"]}
    assert drafted(members(**ORDER, retry=given)).retry.value == {"backoff_ms": 2000, "on": ["exception", "crashed"]}
    assert drafted(members(**ORDER, retry={"on": []})).retry.value == {"on": []}
    large = drafted(members(**ORDER, retry={"backoff_ms": 3_600_000})).retry.value
    assert large == {"backoff_ms": 3_600_000, "max_backoff_ms": 3_600_000}
