"""Whatever is written as conditions is parsed or refused, and whatever an event is, conditions hold of it or do not."""

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.triggers.comparison import OPERATORS
from server.triggers.conditions import evaluate
from server.triggers.explanation import explain
from server.triggers.parsing import OPERATOR_NAMES, parse, written

TEXTS = st.text(st.characters(), max_size=5) | st.sampled_from(["1", "1.0", "NaN", "-Infinity", "1e5", "a", "", "é"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
NAMES = st.sampled_from(["a", "b", "0", "1", "$old", "a.b", ""])
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(NAMES, inside, max_size=3), max_leaves=8
)
EVENTS = st.dictionaries(
    st.sampled_from(["data", "old", "changed", "unavailable", "type", "trigger_id"]), VALUES, max_size=6
)
FIELDS = st.sampled_from(["a", "b", "a.b", "a.0", "b.1.a", r"a\.b", r"\$old", "$old", "$old.a", "$event.type", "0"])
PREDICATES = st.builds(
    lambda field, op, value: {"field": field, "op": op, "value": value},
    FIELDS,
    st.sampled_from(OPERATOR_NAMES),
    VALUES | st.lists(VALUES, max_size=3) | TEXTS | st.booleans(),
)
CONDITIONS = st.recursive(
    PREDICATES,
    lambda inside: (
        st.fixed_dictionaries({"any": st.lists(inside, max_size=3)})
        | st.fixed_dictionaries({"all": st.lists(inside, max_size=3)})
        | st.fixed_dictionaries({"not": inside})
    ),
    max_leaves=6,
)


@given(VALUES | st.lists(VALUES | CONDITIONS, max_size=4))
def test_anything_is_parsed_or_refused(value: object) -> None:
    with contextlib.suppress(InvalidArgument):
        assert repr(written(parse(value))) == repr(value if value is not None else [])


@given(st.lists(CONDITIONS, max_size=4), EVENTS)
def test_any_event_has_a_verdict_and_an_explanation(value: list[object], event: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidArgument):
        conditions = parse(value)
        verdict = evaluate(conditions, event)
        told = explain(conditions, event)
        assert told.holds is verdict
        assert all(isinstance(each.holds, bool) and each.why for each in told.predicates)
        assert verdict == all(evaluate(each, event) for each in conditions.conditions)


@given(VALUES, VALUES)
def test_opposites(wanted: object, actual: object) -> None:
    equal, among = OPERATORS["eq"], OPERATORS["in"]
    prepared, listed = equal.prepare(wanted), among.prepare([wanted])
    assert equal.holds(actual, prepared) is not OPERATORS["neq"].holds(actual, prepared)
    assert among.holds(actual, listed) is not OPERATORS["not_in"].holds(actual, listed)
    assert among.holds(actual, listed) is equal.holds(actual, prepared)


NUMBERS = (
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.decimals(-(10**30), 10**30, places=5).map(str)
)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), NUMBERS)
def test_numbers_are_in_one_order(wanted: float, actual: object) -> None:
    held = {op: OPERATORS[op].holds(actual, OPERATORS[op].prepare(wanted)) for op in ("lt", "lte", "eq", "gte", "gt")}
    assert [held["lt"], held["eq"], held["gt"]].count(True) == 1
    assert held["lte"] is (held["lt"] or held["eq"])
    assert held["gte"] is (held["gt"] or held["eq"])
