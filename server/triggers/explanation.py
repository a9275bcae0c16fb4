"""Why conditions hold of an event or do not: each predicate with what it wanted, what was there, and a sentence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import orjson

from server.triggers.comparison import MAX_SEARCHED_BYTES
from server.triggers.conditions import (
    CHANGED,
    AllOf,
    AnyOf,
    Condition,
    Not,
    Predicate,
    changed,
    evaluate,
    holds,
    unavailable,
)
from server.triggers.paths import MISSING, Envelope, resolve
from server.triggers.values import kind, number

MAX_SHOWN_CHARS: Final = 200
NOTHING: Final[Mapping[str, Condition]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ExplainedPredicate:
    """`at` is where it was written, such as conditions[1].any[0]. `wanted` and `actual` are JSON, cut after
    MAX_SHOWN_CHARS; `actual` is None for a field that is missing, and `wanted` for a value that was left out."""

    at: str
    field: str
    op: str
    wanted: str | None
    actual: str | None
    holds: bool
    why: str


@dataclass(frozen=True, slots=True)
class Explained:
    """`holds` is the verdict of all conditions together, groups included."""

    holds: bool
    predicates: tuple[ExplainedPredicate, ...]


def explain(
    conditions: AllOf, event: Envelope, field: str = "conditions", *, beside: Mapping[str, Condition] = NOTHING
) -> Explained:
    """Never raises, whatever the event. Every predicate is tried, also those that the verdict does not need. `beside`
    are conditions that were asked for elsewhere, by the place."""
    places = {f"{field}[{index}]": condition for index, condition in enumerate(conditions.conditions)} | {**beside}
    predicates = (each for at, condition in places.items() for each in _predicates(condition, at, event))
    return Explained(all(evaluate(each, event) for each in places.values()), tuple(predicates))


def _predicates(condition: Condition, at: str, event: Envelope) -> Iterator[ExplainedPredicate]:
    if isinstance(condition, Predicate):
        yield _explained(condition, at, event)
    elif isinstance(condition, Not):
        yield from _predicates(condition.condition, f"{at}.not", event)
    else:
        group = "any" if isinstance(condition, AnyOf) else "all"
        for index, each in enumerate(condition.conditions):
            yield from _predicates(each, f"{at}.{group}[{index}]", event)


def _explained(predicate: Predicate, at: str, event: Envelope) -> ExplainedPredicate:
    actual, verdict = resolve(predicate.path, event), holds(predicate, event)
    return ExplainedPredicate(
        at=at,
        field=predicate.field,
        op=predicate.op,
        wanted=None if predicate.wanted is MISSING else _cut(predicate.wanted),
        actual=None if actual is MISSING else _cut(actual),
        holds=verdict,
        why=_why(predicate, actual, verdict, event),
    )


def _why(predicate: Predicate, actual: object, verdict: bool, event: Envelope) -> str:
    if predicate.op == CHANGED:
        return f"{predicate.field} {'changed' if changed(predicate.path, event) else 'did not change'}"
    if unavailable(predicate.path, event):
        return f"{predicate.field} is large and did not change, so that Postgres did not send it"
    if actual is MISSING:
        return f"the event has no {predicate.field}"
    if predicate.op == "exists":
        return f"the event has {predicate.field}"
    if not verdict and (mismatch := _mismatch(predicate, actual)):
        return mismatch
    relation = f"{predicate.op} {_cut(predicate.wanted)}"
    return f"{_cut(actual)} {'is' if verdict else 'is not'} {relation}"


def _mismatch(predicate: Predicate, actual: object) -> str | None:
    """When one fails because of the type of what was found, or its length."""
    found = kind(actual)
    if (
        predicate.op == "matches"
        and isinstance(actual, str)
        and len(actual.encode(errors="surrogatepass")) > MAX_SEARCHED_BYTES
    ):
        return f"a string of more than {MAX_SEARCHED_BYTES} bytes is not searched"
    if predicate.op in ("prefix", "suffix", "matches") and not isinstance(actual, str):
        return f"{predicate.op} takes a string and {predicate.field} is {found}"
    if predicate.op == "contains" and not isinstance(actual, str | list):
        return f"contains takes a string or an array and {predicate.field} is {found}"
    if predicate.op in ("eq", "gt", "gte", "lt", "lte"):
        wanted = kind(predicate.wanted)
        if wanted == "a number" and isinstance(actual, str) and number(actual) is None:
            return f"{predicate.field} is a string that spells no number, and {predicate.op} wants one"
        if wanted != found and not (wanted == "a number" and number(actual) is not None):
            return f"{predicate.field} is {found}, and {predicate.op} wants {wanted}"
    return None


def _cut(value: object) -> str:
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # a lone surrogate, an integer of more than 64 bits, more than 254 levels
        text = _plain(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


def _plain(value: object) -> str:
    if isinstance(value, str):
        return ascii(value)
    return str(value) if type(value) is int and abs(value) < 10**MAX_SHOWN_CHARS else kind(value)
