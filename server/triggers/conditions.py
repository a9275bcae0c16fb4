"""Conditions: what must hold of an event for a trigger to fire. They are ANDed.

    [{"field": "amount", "op": "gt", "value": 100},
     {"any": [{"field": "status", "op": "changed"}, {"not": {"field": "$old.status", "op": "eq", "value": "new"}}]}]

A condition is a predicate on one field (`comparison` has the operators, `paths` the fields) or a group: `all` and
`any` of a list, `not` of one. `exists` and `changed` may go without a value, which is true then.

`changed` asks whether an update changed a field of the row: whether the event's member `changed` names the column, and,
where `old` has the column, whether the value at the path is another than there. Whether a column that Postgres did not
send (`unavailable`) changed is known: it did not. Without `changed` and `old`, as after an INSERT, nothing did.
"""

from dataclasses import dataclass
from typing import Final

from server.triggers.comparison import OPERATORS
from server.triggers.paths import MISSING, Envelope, Path, resolve
from server.triggers.values import identical

CHANGED: Final = "changed"


@dataclass(frozen=True, slots=True)
class Predicate:
    """`wanted` is the value as it was written, MISSING when it was left out; `prepared` as the operator takes it."""

    field: str
    path: Path
    op: str
    wanted: object
    prepared: object


@dataclass(frozen=True, slots=True)
class AllOf:
    """Of none: always."""

    conditions: "tuple[Condition, ...]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    conditions: "tuple[Condition, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    condition: "Condition"


Condition = Predicate | AllOf | AnyOf | Not

ALWAYS: Final = AllOf(())


def evaluate(condition: Condition, event: Envelope) -> bool:
    """Whether it holds. Never raises, whatever the event."""
    if isinstance(condition, Predicate):
        return holds(condition, event)
    if isinstance(condition, AllOf):
        return all(evaluate(each, event) for each in condition.conditions)
    if isinstance(condition, AnyOf):
        return any(evaluate(each, event) for each in condition.conditions)
    return not evaluate(condition.condition, event)


def holds(predicate: Predicate, event: Envelope) -> bool:
    if predicate.op == CHANGED:
        return changed(predicate.path, event) is predicate.prepared
    return OPERATORS[predicate.op].holds(resolve(predicate.path, event), predicate.prepared)


def changed(path: Path, event: Envelope) -> bool:
    """Whether an update changed the field at a path of two or more names into `data`."""
    _, column, *inside = path
    columns = event.get("changed")
    named = isinstance(columns, list | tuple) and column in columns
    if (columns and not named) or unavailable(path, event):
        return False
    if resolve(("old", column), event) is MISSING:
        return named
    return not identical(resolve(path, event), resolve(("old", column, *inside), event))


def unavailable(path: Path, event: Envelope) -> bool:
    """Whether Postgres did not send the column because it is large and did not change."""
    columns = event.get("unavailable")
    return len(path) > 1 and path[0] == "data" and isinstance(columns, list | tuple) and path[1] in columns


def as_written(condition: Condition) -> object:
    """The JSON that it was parsed from."""
    if isinstance(condition, Predicate):
        written = {"field": condition.field, "op": condition.op}
        return written if condition.wanted is MISSING else written | {"value": condition.wanted}
    if isinstance(condition, Not):
        return {"not": as_written(condition.condition)}
    return {"all" if isinstance(condition, AllOf) else "any": [as_written(each) for each in condition.conditions]}
