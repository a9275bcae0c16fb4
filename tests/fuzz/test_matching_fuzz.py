"""However triggers came and went, an event fires exactly those that asking each of them would fire."""

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.triggers.conditions import AllOf, Condition, evaluate
from server.triggers.matching import Matcher, Token
from server.triggers.parsing import parse
from server.triggers.patterns import CRON, matches, parse_pattern

TYPES = st.sampled_from(["a", "a.b", "a.b.c", CRON])
PATTERNS = st.sampled_from(["a", "a", "a.b", "a.*", "a.>", "a.*.c", "a.b.>", CRON])
SCALARS: st.SearchStrategy[Any] = st.sampled_from([None, True, 0, 1, 1.0, "1", "1.0", [1], {}])
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from("pq0"), SCALARS, max_size=2)
FIELDS = st.sampled_from(["p", "p", "q", "p.q", "p.0", "$old.p", "$event.type", "$event.data.p", "$event"])
EQUALITIES = st.builds(lambda field, value: {"field": field, "op": "eq", "value": value}, FIELDS, SCALARS)
LISTS = st.builds(
    lambda field, values: {"field": field, "op": "in", "value": values},
    FIELDS,
    st.lists(SCALARS, min_size=1, max_size=3),
)
OTHERS = st.builds(
    lambda field, op: {"field": field, "op": op, "value": True}, FIELDS, st.sampled_from(["neq", "exists", "contains"])
)
CONDITIONS = st.recursive(
    EQUALITIES | LISTS | OTHERS,
    lambda inside: (
        st.builds(lambda each: {"any": each}, st.lists(inside, min_size=1, max_size=3))
        | st.builds(lambda each: {"all": each}, st.lists(inside, min_size=1, max_size=3))
        | st.builds(lambda each: {"not": each}, inside)
    ),
    max_leaves=4,
)
IDS = st.sampled_from([f"t{number}" for number in range(8)])
CHANGES = st.lists(st.tuples(IDS, PATTERNS | st.none(), st.lists(CONDITIONS, max_size=2)), max_size=12)
ROWS = st.fixed_dictionaries({"p": VALUES}, optional={"q": VALUES})
EVENTS = st.fixed_dictionaries({"type": TYPES, "data": ROWS}, optional={"old": ROWS, "trigger_id": IDS})


def fired(triggers: dict[str, tuple[str, Condition]], event: dict[str, Any]) -> list[str]:
    """By asking each."""
    return sorted(
        trigger_id
        for trigger_id, (pattern, condition) in triggers.items()
        if matches(pattern, event["type"])
        and (pattern != CRON or event.get("trigger_id") == trigger_id)
        and evaluate(condition, event)
    )


@given(CHANGES, st.lists(EVENTS, min_size=1, max_size=4))
def test_the_index_finds_what_asking_each_finds(
    changes: list[tuple[str, str | None, list[object]]], events: list[dict[str, Any]]
) -> None:
    matcher = Matcher()
    triggers: dict[str, tuple[str, Condition]] = {}
    for trigger_id, pattern, conditions in changes:
        if pattern is None:
            assert matcher.remove(trigger_id) is (triggers.pop(trigger_id, None) is not None)
        else:
            triggers[trigger_id] = parse_pattern("event_type", pattern), parse(conditions)
            matcher.add(trigger_id, *triggers[trigger_id])
        for event in events:
            assert sorted(matcher.match(event)) == fired(triggers, event)
    assert len(matcher) == len(triggers)
    for trigger_id in triggers:
        matcher.remove(trigger_id)
    assert matcher._tokens == Token()


@given(st.text(max_size=12) | st.text("ab.*>%2A", max_size=12), TYPES | st.text("ab.*>", max_size=8))
def test_any_text_is_a_pattern_or_refused(pattern: str, event_type: str) -> None:
    with contextlib.suppress(InvalidArgument):
        matcher = Matcher()
        matcher.add("t", parse_pattern("event_type", pattern), AllOf(()))
        event = {"type": event_type, "trigger_id": "t"}
        assert matcher.match(event) == (["t"] if matches(pattern, event_type) else [])


@given(st.dictionaries(st.sampled_from(["type", "data", "old"]), VALUES | st.text(max_size=5)))
def test_no_event_is_too_odd(event: dict[str, Any]) -> None:
    matcher = Matcher()
    matcher.add("t", "x", parse([{"field": "p", "op": "eq", "value": 1}]))
    assert matcher.match(event) in ([], ["t"])
