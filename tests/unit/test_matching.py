"""Exactly the triggers that an event fires, and no more of them asked than it may concern."""

import pytest

from server.triggers import matching
from server.triggers.conditions import Condition, evaluate
from server.triggers.matching import Matcher
from server.triggers.parsing import parse
from server.triggers.paths import Envelope

ORDER = "cdc.INSERT.orders"


def eq(field: str, value: object) -> dict[str, object]:
    return {"field": field, "op": "eq", "value": value}


def event(event_type: str = ORDER, **data: object) -> Envelope:
    return {"type": event_type, "data": data}


def matcher(**triggers: tuple[str, object]) -> Matcher:
    made = Matcher()
    for trigger_id, (pattern, conditions) in triggers.items():
        made.add(trigger_id, pattern, parse(conditions))
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Condition]:
    """The conditions that were evaluated."""
    conditions: list[Condition] = []

    def counted(condition: Condition, event: Envelope) -> bool:
        conditions.append(condition)
        return evaluate(condition, event)

    monkeypatch.setattr(matching, "evaluate", counted)
    return conditions


def test_type_and_conditions_decide() -> None:
    triggers = matcher(
        large=(ORDER, [{"field": "amount", "op": "gt", "value": 100}]),
        all=(ORDER, []),
        any_table=("cdc.INSERT.*", []),
        any_operation=("cdc.*.orders", [eq("status", "new")]),
        every=("cdc.>", None),
        updates=("cdc.UPDATE.orders", []),
        users=("cdc.INSERT.users", []),
    )
    assert len(triggers) == 7
    assert sorted(triggers.match(event(amount=150, status="new"))) == [
        "all",
        "any_operation",
        "any_table",
        "every",
        "large",
    ]
    assert sorted(triggers.match(event(amount=50))) == ["all", "any_table", "every"]
    assert sorted(triggers.match(event("cdc.UPDATE.orders", status="new"))) == ["any_operation", "every", "updates"]
    assert triggers.match(event("order.paid")) == []


@pytest.mark.parametrize("event_type", [None, 5, "", ".", "cdc", "*.INSERT.orders", "cdc.>", ">", "cdc." * 1000])
def test_an_odd_type_fires_nothing(event_type: object) -> None:
    triggers = matcher(one=(ORDER, []), two=("order.*", []), three=("cdc.INSERT.*", []))
    assert triggers.match({"type": event_type, "data": {}}) == []
    assert triggers.match({}) == []


def test_a_tick_fires_the_trigger_that_it_names_and_no_other() -> None:
    triggers = matcher(a=("cron", []), b=("cron", []), c=("cron", [eq("day", "Monday")]))
    assert triggers.match({"type": "cron", "trigger_id": "b", "data": {}}) == ["b"]
    assert triggers.match({"type": "cron", "trigger_id": "c", "data": {"day": "Tuesday"}}) == []
    assert triggers.match({"type": "cron", "data": {}}) == []


def test_a_trigger_is_replaced_and_removed() -> None:
    triggers = matcher(a=(ORDER, [eq("n", 1)]))
    triggers.add("a", "order.paid", parse([eq("n", 2)]))
    assert len(triggers) == 1
    assert triggers.match(event(n=1)) == []
    assert triggers.match(event("order.paid", n=2)) == ["a"]
    assert triggers.remove("a")
    assert not triggers.remove("a")
    assert triggers.match(event("order.paid", n=2)) == []
    assert len(triggers) == 0
    assert triggers._tokens == matching.Token(), "what nobody needs any more is forgotten"


@pytest.mark.parametrize(
    "conditions",
    [
        [eq("customer", "c-{}")],
        [eq("customer.id", 1000), {"field": "amount", "op": "gt", "value": 0}],
        [eq("status", "paid"), eq("customer", "c-{}")],
        [{"field": "customer", "op": "in", "value": ["c-{}", "d-{}"]}],
        [{"any": [eq("customer", "c-{}"), eq("$old.customer", "c-{}")]}],
        [{"all": [{"all": [eq("customer", "c-{}")]}, {"field": "amount", "op": "exists"}]}],
        [eq("labels.label-{}", "on")],
        [eq("list.{}", "on")],
    ],
)
def test_only_those_that_an_event_may_concern_are_asked(asked: list[Condition], conditions: list[object]) -> None:
    triggers = Matcher()
    for index in range(1000):
        triggers.add(str(index), ORDER, parse(_filled(conditions, index)))
    found = triggers.match(
        event(customer="c-7", status="paid", amount=5, labels={"label-7": "on"}, list=["off"] * 7 + ["on"])
    )
    assert found == ([] if "customer.id" in str(conditions) else ["7"])
    assert len(asked) <= 2, "itself, and the first one, that was listed when nothing was known of the others"


def _filled(conditions: object, index: int) -> object:
    """The same with the index for {}."""
    if isinstance(conditions, str):
        return conditions.replace("{}", str(index))
    if isinstance(conditions, list):
        return [_filled(each, index) for each in conditions]
    if isinstance(conditions, dict):
        return {name: _filled(value, index) for name, value in conditions.items()}
    return conditions


@pytest.mark.parametrize(
    "condition",
    [
        {"not": eq("x", 2)},
        {"field": "x", "op": "neq", "value": 2},
        {"field": "x", "op": "not_in", "value": [2]},
        {"any": [eq("x", 1), {"field": "y", "op": "exists", "value": False}]},
        {"field": "list", "op": "in", "value": [[1, 2], 1]},
        eq("list", [1, 2]),
        {"field": "list", "op": "contains", "value": 2},
    ],
)
def test_what_no_equality_can_exclude_is_asked(condition: object) -> None:
    triggers = matcher(a=(ORDER, [condition]))
    assert triggers.match(event(x=1, list=[1, 2])) == ["a"]


def test_a_trigger_that_several_values_lead_to_fires_once() -> None:
    triggers = matcher(a=(ORDER, [{"any": [eq("x", 1), eq("x", "1"), eq("y", True)]}]))
    assert triggers.match(event(x="1", y=True)) == ["a"]


@pytest.mark.parametrize("actual", [100, 100.0, "100", "1e2", "100.00"])
def test_numbers_are_found_however_they_are_spelled(actual: object) -> None:
    triggers = matcher(number=(ORDER, [eq("n", 100)]), text=(ORDER, [eq("n", "100")]), flag=(ORDER, [eq("n", True)]))
    assert sorted(triggers.match(event(n=actual))) == (["number", "text"] if actual == "100" else ["number"])
