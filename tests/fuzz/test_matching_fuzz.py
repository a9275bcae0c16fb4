"""However triggers came and went, an event fires exactly those that asking each of them would fire."""

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.triggers.conditions import AllOf, Condition, evaluate
from server.triggers.matching import Matcher, Token
from server.triggers.parsing import parse
from server.triggers.patterns import CRON, matches, parse_pattern

SCALARS: tuple[object, ...] = (None, True, False, 0, 1, 1.0, "1", "1.0", "1e0", "x", 2**60, [1], {})
FIELDS = ("p", "p", "q", "p.q", "p.0", "$old.p", "$event.type", "$event.data.p", "$event")
PATTERNS = ("a", "a", "a.b", "a.*", "a.>", "a.*.c", CRON)
TYPES = ("a", "a", "a.b", "a.b.c", CRON)
IDS = tuple(f"t{number}" for number in range(12))


class Chance(random.Random):
    """Triggers and events that often have to do with one another."""

    def value(self, depth: int = 2) -> object:
        draw = self.random()
        if depth == 0 or draw < 0.6:
            return self.choice(SCALARS)
        if draw < 0.8:
            return [self.value(depth - 1) for _ in range(self.randrange(3))]
        return {self.choice("pq0"): self.value(depth - 1) for _ in range(self.randrange(3))}

    def condition(self, depth: int = 2) -> dict[str, object]:
        draw = self.random()
        if depth == 0 or draw < 0.65:
            op = self.choice(("eq", "eq", "in", "in", "neq", "exists", "contains"))
            value = {"in": [self.value(1) for _ in range(self.randrange(1, 4))], "exists": True}.get(op, self.value(1))
            return {"field": self.choice(FIELDS), "op": op, "value": value}
        if draw < 0.9:
            group = "any" if draw < 0.8 else "all"
            return {group: [self.condition(depth - 1) for _ in range(self.randrange(1, 4))]}
        return {"not": self.condition(depth - 1)}

    def event(self) -> dict[str, Any]:
        event = {"type": self.choice(TYPES), "data": {"p": self.value(), "q": self.value()}}
        event |= {"old": {"p": self.value()}} if self.random() < 0.3 else {}
        return event | ({"trigger_id": self.choice(IDS)} if self.random() < 0.8 else {})


def fired(triggers: dict[str, tuple[str, Condition]], event: dict[str, Any]) -> list[str]:
    """By asking each."""
    return sorted(
        trigger_id
        for trigger_id, (pattern, condition) in triggers.items()
        if matches(pattern, event["type"])
        and (pattern != CRON or event.get("trigger_id") == trigger_id)
        and evaluate(condition, event)
    )


@pytest.mark.parametrize("seed", range(200))
def test_the_index_finds_what_asking_each_finds(seed: int) -> None:
    chance = Chance(seed)
    matcher = Matcher()
    triggers: dict[str, tuple[str, Condition]] = {}
    for _ in range(30):
        trigger_id = chance.choice(IDS)
        if chance.random() < 0.2:
            assert matcher.remove(trigger_id) is (triggers.pop(trigger_id, None) is not None)
        else:
            conditions = parse([chance.condition() for _ in range(chance.randrange(3))])
            triggers[trigger_id] = chance.choice(PATTERNS), conditions
            matcher.add(trigger_id, *triggers[trigger_id])
        event = chance.event()
        assert sorted(matcher.match(event)) == fired(triggers, event)
    assert len(matcher) == len(triggers)
    for trigger_id in triggers:
        matcher.remove(trigger_id)
    assert matcher._tokens == Token()


@given(
    st.text(max_size=12) | st.text("ab.*>%2A", max_size=12) | st.sampled_from(PATTERNS),
    st.sampled_from(TYPES) | st.text("ab.*>", max_size=8),
)
def test_any_text_is_a_pattern_or_refused(pattern: str, event_type: str) -> None:
    with contextlib.suppress(InvalidArgument):
        matcher = Matcher()
        matcher.add("t", parse_pattern("event_type", pattern), AllOf(()))
        event = {"type": event_type, "trigger_id": "t"}
        assert matcher.match(event) == (["t"] if matches(pattern, event_type) else [])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from("p0"), inside, max_size=2),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["type", "data", "old"]), ANYTHING | st.just("x")))
def test_no_event_is_too_odd(event: dict[str, Any]) -> None:
    matcher = Matcher()
    matcher.add("t", "x", parse([{"field": "p", "op": "eq", "value": 1}]))
    assert matcher.match(event) in ([], ["t"])
