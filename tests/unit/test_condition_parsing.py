"""What conditions may look like, and what an error says of those that may not."""

import math

import pytest

from server.errors import InvalidArgument
from server.triggers.parsing import parse, written

ONE = {"field": "amount", "op": "gt", "value": 100}

LETTERS = {"field": "a", "op": "matches", "value": r"\pL+"}


@pytest.mark.parametrize(
    "conditions",
    [
        [],
        [ONE],
        [{"field": "a", "op": "eq", "value": None}],
        [{"field": "a", "op": "eq", "value": 1.0}, {"field": "a", "op": "in", "value": [1, "1", None, {"b": [2.5]}]}],
        [{"field": "a", "op": "exists"}, {"field": "a", "op": "exists", "value": True}],
        [{"field": "a", "op": "changed"}, {"field": r"a\.b.0", "op": "changed", "value": False}],
        [{"any": [ONE, {"all": [ONE, {"not": {"field": "$old.n", "op": "matches", "value": "^x"}}]}]}],
    ],
)
def test_what_was_written_is_returned(conditions: list[object]) -> None:
    assert written(parse(conditions)) == conditions
    assert repr(written(parse(conditions))) == repr(conditions)


REFUSED = [
    ({}, "conditions", "conditions is an object; it must be an array"),
    ("x", "conditions", "conditions is a string; it must be an array"),
    ([ONE, 5], "conditions[1]", "is a number; it must be an object"),
    ([{"op": "eq", "value": 1}], "conditions[0].field", "is missing"),
    ([{"field": "a", "value": 1}], "conditions[0].op", "is missing"),
    ([{"field": "a", "op": "eq"}], "conditions[0].value", "is missing; eq compares"),
    ([{"field": 1, "op": "eq", "value": 1}], "conditions[0].field", "is a number; it must be a string"),
    ([{"field": "a", "op": None, "value": 1}], "conditions[0].op", "is null; it must be a string"),
    ([{"field": "a", "op": "equals", "value": 1}], "conditions[0].op", 'is "equals"; it must be one of eq, neq, gt,'),
    ([{"field": "a", "op": "EQ", "value": 1}], "conditions[0].op", 'is "EQ"'),
    ([{**ONE, "valeu": 1}], "conditions[0]", 'has the member "valeu"'),
    ([{"any": [ONE], "all": [ONE]}], "conditions[0]", 'has the member "any"'),
    ([{"any": [ONE], "field": "a"}], "conditions[0]", 'has the member "field"'),
    ([{"any": []}], "conditions[0].any", "is empty"),
    ([{"all": ONE}], "conditions[0].all", "is an object; it must be an array"),
    ([{"not": [ONE]}], "conditions[0].not", "is an array; it must be an object"),
    ([ONE, {"any": [ONE, {"not": {"field": "a", "op": "x"}}]}], "conditions[1].any[1].not.op", 'is "x"'),
    ([{"field": "a", "op": "gt", "value": None}], "conditions[0].value", "is null; for gt it must be a number or a"),
    ([{"field": "a", "op": "lte", "value": True}], "conditions[0].value", "is true; for lte it must be a number or a"),
    ([{"field": "a", "op": "gte", "value": [1]}], "conditions[0].value", "is an array; for gte"),
    ([{"field": "a", "op": "in", "value": "a"}], "conditions[0].value", 'is "a"; for in it must be an array of 1 to'),
    ([{"field": "a", "op": "in", "value": []}], "conditions[0].value", "is an array; for in it must be an array of 1"),
    ([{"field": "a", "op": "not_in", "value": [1] * 1001}], "conditions[0].value", "of 1 to 1000 values"),
    ([{"field": "a", "op": "exists", "value": 1}], "conditions[0].value", "for exists it must be true or false"),
    ([{"field": "a", "op": "changed", "value": "x"}], "conditions[0].value", "for changed it must be true or false"),
    ([{"field": "$old.a", "op": "changed"}], "conditions[0].field", "changed takes a field of the row"),
    ([{"field": "$event.data", "op": "changed"}], "conditions[0].field", "changed takes a field of the row"),
    ([{"field": "a", "op": "prefix", "value": 1}], "conditions[0].value", "for prefix it must be a string"),
    ([{"field": "a", "op": "suffix", "value": None}], "conditions[0].value", "for suffix it must be a string"),
    ([{"field": "a", "op": "matches", "value": "("}], "conditions[0].value", "an RE2 pattern: missing )"),
    ([{"field": "a", "op": "matches", "value": "(?=a)"}], "conditions[0].value", "an RE2 pattern: invalid perl"),
    ([{"field": "a", "op": "matches", "value": r"(a)\1"}], "conditions[0].value", "an RE2 pattern: invalid escape"),
    ([{"field": "a", "op": "matches", "value": "a{1001}"}], "conditions[0].value", "an RE2 pattern: invalid repet"),
    ([{"field": "a", "op": "matches", "value": ".{750}"}], "conditions[0].value", "steps; at most 3000 are allowed"),
    ([{"any": [LETTERS] * 6}], "conditions[0].any[2].value", "take 3603 steps, and at most 3000 are allowed"),
    ([{"field": "a", "op": "matches", "value": r"\pL{300}"}], "conditions[0].value", "pattern too large"),
    ([{"field": "a", "op": "matches", "value": "a" * 513}], "conditions[0].value", "513 characters; at most 512"),
    ([{"field": "a", "op": "matches", "value": "\ud800"}], "conditions[0].value", "no lone surrogates"),
    ([{"field": "a", "op": "eq", "value": math.nan}], "conditions", "numbers must be finite"),
    ([{"field": "a", "op": "eq", "value": [-math.inf]}], "conditions", "numbers must be finite"),
    ([{"field": "", "op": "exists"}], "conditions[0].field", "has 0 characters"),
    ([{"field": "a" * 513, "op": "exists"}], "conditions[0].field", "has 513 characters; a path has 1 to 512"),
    ([{"field": "a..b", "op": "exists"}], "conditions[0].field", 'is "a..b"; it must be names with a dot between'),
    ([{"field": ".a", "op": "exists"}], "conditions[0].field", "names with a dot between"),
    ([{"field": "a.", "op": "exists"}], "conditions[0].field", "names with a dot between"),
    ([{"field": "a\\b", "op": "exists"}], "conditions[0].field", "names with a dot between"),
    ([{"field": "a\\", "op": "exists"}], "conditions[0].field", "names with a dot between"),
    ([{"field": "$new.a", "op": "exists"}], "conditions[0].field", "only $old and $event are known"),
    ([{"field": "$", "op": "exists"}], "conditions[0].field", "only $old and $event are known"),
    ([{"field": ".".join("a" * 17), "op": "exists"}], "conditions[0].field", "17 names; at most 16"),
    ([ONE] * 101, "conditions[100]", "at most 100 are allowed"),
    ([{"any": [ONE] * 60}, {"all": [ONE] * 60}], "conditions[1].all[40]", "at most 100 are allowed"),
    ([{"field": "a", "op": "eq", "value": "x" * 65_536}], "conditions", "larger than 65536"),
    ([{"field": "a", "op": "eq", "value": {"x" * 65_536: 1}}], "conditions", "larger than 65536"),
    ([{"field": "a", "op": "eq", "value": [1] * 10_000}], "conditions", "larger than 65536"),
]


@pytest.mark.parametrize(("conditions", "field", "message"), REFUSED)
def test_refused(conditions: object, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(conditions)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)
    assert message in caught.value.message
    assert len(caught.value.message) < 400


def groups(depth: int) -> object:
    condition: object = ONE
    for _ in range(depth):
        condition = {"not": condition}
    return [condition]


def test_groups_nest_to_a_bound() -> None:
    parse(groups(8))
    with pytest.raises(InvalidArgument, match="nested in 8 groups; at most 8") as caught:
        parse(groups(9))
    assert caught.value.field == "conditions[0]" + ".not" * 8


def test_nothing_is_too_deep_to_be_refused() -> None:
    value: object = []
    for _ in range(100_000):
        value = [value]
    for conditions in (value, [{"field": "a", "op": "eq", "value": value}], groups(100_000)):
        with pytest.raises(InvalidArgument, match="nested too deep"):
            parse(conditions)


def test_the_field_may_have_another_name() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse([5], "trigger.conditions")
    assert caught.value.field == "trigger.conditions[0]"
