"""What people are told about conditions that held and those that did not."""

import pytest

from server.triggers.explanation import Explained, ExplainedPredicate, explain
from server.triggers.parsing import parse


def of(condition: object, **event: object) -> Explained:
    return explain(parse([condition]), event)


def test_a_condition_that_fails() -> None:
    assert of({"field": "amount", "op": "gt", "value": 100}, data={"amount": 80}) == Explained(
        holds=False,
        predicates=(
            ExplainedPredicate(
                at="conditions[0]",
                field="amount",
                op="gt",
                wanted="100",
                actual="80",
                holds=False,
                why="80 is not gt 100",
            ),
        ),
    )


def test_every_predicate_of_groups_is_told_with_its_place() -> None:
    conditions = parse(
        [
            {"any": [{"field": "a", "op": "eq", "value": 1}, {"not": {"field": "b", "op": "exists"}}]},
            {"all": [{"field": "a", "op": "eq", "value": 2}]},
        ]
    )
    told = explain(conditions, {"data": {"a": 1, "b": None}}, "trigger.conditions")
    assert not told.holds
    assert [(each.at, each.holds) for each in told.predicates] == [
        ("trigger.conditions[0].any[0]", True),
        ("trigger.conditions[0].any[1].not", True),
        ("trigger.conditions[1].all[0]", False),
    ]


@pytest.mark.parametrize(
    ("op", "value", "event", "why"),
    [
        ("gt", 100, {"data": {"x": 120}}, "120 is gt 100"),
        ("gt", 100, {"data": {"x": "120.50"}}, '"120.50" is gt 100'),
        ("gt", 100, {"data": {"x": "NaN"}}, "x is a string that spells no number, and gt wants one"),
        ("gt", 100, {"data": {"x": None}}, "x is null, and gt wants a number"),
        ("eq", "100", {"data": {"x": 100}}, "x is a number, and eq wants a string"),
        ("eq", True, {"data": {"x": 1}}, "x is a number, and eq wants true"),
        ("eq", True, {"data": {"x": False}}, "x is false, and eq wants true"),
        ("eq", "é", {"data": {"x": "e"}}, '"e" is not eq "é"'),
        ("eq", 1, {"data": {}}, "the event has no x"),
        ("neq", 1, {"data": {}}, "the event has no x"),
        ("eq", 1, {}, "the event has no x"),
        (
            "eq",
            1,
            {"data": {}, "unavailable": ["x"]},
            "x is large and did not change, so that Postgres did not send it",
        ),
        ("exists", True, {"data": {"x": None}}, "the event has x"),
        ("changed", True, {"data": {"x": 1}, "changed": ["x"]}, "x changed"),
        ("changed", True, {"data": {"x": 1}}, "x did not change"),
        ("prefix", "a", {"data": {"x": ["a"]}}, "prefix takes a string and x is an array"),
        ("contains", "a", {"data": {"x": {}}}, "contains takes a string or an array and x is an object"),
        ("matches", "a", {"data": {"x": "a" * 20_000}}, "a string of more than 4096 bytes is not searched"),
        ("in", [1, 2], {"data": {"x": 3}}, "3 is not in [1,2]"),
    ],
)
def test_why(op: str, value: object, event: dict[str, object], why: str) -> None:
    assert of({"field": "x", "op": op, "value": value}, **event).predicates[0].why == why


def test_a_value_that_was_left_out_and_a_field_that_is_missing() -> None:
    told = of({"field": "x", "op": "exists"}, data={}).predicates[0]
    assert (told.wanted, told.actual, told.holds) == (None, None, False)


@pytest.mark.parametrize(
    ("actual", "shown"),
    [
        ("a" * 1000, '"' + "a" * 198 + "…"),
        (10**30, "1" + "0" * 30),
        pytest.param(10**5000, "a number", id="digits"),
        ("\ud800", "'\\ud800'"),
        ({"a": "\ud800"}, "an object"),
    ],
)
def test_what_was_found_is_shown_as_json_and_cut(actual: object, shown: str) -> None:
    assert of({"field": "x", "op": "eq", "value": 1}, data={"x": actual}).predicates[0].actual == shown
