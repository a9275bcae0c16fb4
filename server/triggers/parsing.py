"""Conditions as they are written: checked once, with an error that names place, value and rule."""

from collections.abc import Mapping
from typing import Final

from server.errors import InvalidArgument
from server.fields import shown
from server.triggers.comparison import MAX_STEPS, OPERATORS, Unfit, flag, steps
from server.triggers.conditions import CHANGED, AllOf, AnyOf, Condition, Not, Predicate, as_written
from server.triggers.paths import MISSING, parse_path
from server.triggers.values import kind

MAX_PREDICATES: Final = 100
"""Of one trigger, in all its groups."""

MAX_GROUP_DEPTH: Final = 8
MAX_VALUE_DEPTH: Final = 12
"""With the groups around it, no deeper than a gRPC client can read."""

MAX_SIZE: Final = 65_536
"""Characters of the strings in one trigger's conditions, and 8 for each other value."""

OPERATOR_NAMES: Final = (*OPERATORS, CHANGED)
_DEFAULT_TRUE: Final = ("exists", CHANGED)
_GROUPS: Final = ("all", "any", "not")


def parse(value: object, field: str = "conditions") -> AllOf:
    """The conditions of a trigger, from an array (or null) in JSON. InvalidArgument names the place under `field`."""
    if value is None:
        return AllOf(())
    _require_json(value, field)
    return AllOf(_list(value, field, _Budget(), depth=0))


def written(conditions: AllOf) -> list[object]:
    """What `parse` was given."""
    return [as_written(each) for each in conditions.conditions]


class _Budget:
    """What one trigger may ask for, in all its groups."""

    def __init__(self) -> None:
        self.predicates = 0
        self.steps = 0

    def take(self, field: str) -> None:
        self.predicates += 1
        if self.predicates > MAX_PREDICATES:
            raise InvalidArgument(
                field,
                f"{field} is the trigger's condition number {self.predicates}; at most {MAX_PREDICATES} are allowed, "
                "and one `in` takes many values",
                allowed=str(MAX_PREDICATES),
            )

    def take_steps(self, field: str, pattern: str) -> None:
        self.steps += steps(pattern)
        if self.steps > MAX_STEPS:
            raise InvalidArgument(
                field,
                f"{field} is {shown(pattern)}; with it the trigger's patterns take {self.steps} steps, and at most "
                f"{MAX_STEPS} are allowed: repeat less",
                allowed=str(MAX_STEPS),
            )


def _list(value: object, field: str, budget: _Budget, *, depth: int) -> tuple[Condition, ...]:
    if not isinstance(value, list):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be an array of conditions")
    return tuple(_condition(each, f"{field}[{index}]", budget, depth=depth) for index, each in enumerate(value))


def _condition(value: object, field: str, budget: _Budget, *, depth: int) -> Condition:
    if not isinstance(value, dict):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be an object such as {_EXAMPLE}")
    group = next((name for name in _GROUPS if name in value), None)
    if group is None:
        budget.take(field)
        predicate = _predicate(value, field)
        if predicate.op == "matches":
            budget.take_steps(f"{field}.value", str(predicate.wanted))
        return predicate
    _refuse_others(value, (group,), field)
    if depth == MAX_GROUP_DEPTH:
        raise InvalidArgument(
            field, f"{field} is nested in {depth} groups; at most {MAX_GROUP_DEPTH} are allowed", allowed=str(depth)
        )
    inside = f"{field}.{group}"
    if group == "not":
        return Not(_condition(value[group], inside, budget, depth=depth + 1))
    conditions = _list(value[group], inside, budget, depth=depth + 1)
    if not conditions:
        raise InvalidArgument(inside, f"{inside} is empty; a group has at least one condition")
    return AllOf(conditions) if group == "all" else AnyOf(conditions)


def _predicate(value: Mapping[str, object], field: str) -> Predicate:
    _refuse_others(value, ("field", "op", "value"), field)
    name, op = _string(value, "field", field), _string(value, "op", field)
    if op not in OPERATOR_NAMES:
        raise InvalidArgument(
            f"{field}.op",
            f"{field}.op is {shown(op)}; it must be one of {', '.join(OPERATOR_NAMES)}",
            value=op[:100],
            allowed=", ".join(OPERATOR_NAMES),
        )
    path = parse_path(name, f"{field}.field")
    if op == CHANGED and (path[:1] != ("data",) or len(path) < 2):
        raise InvalidArgument(
            f"{field}.field", f"{field}.field is {shown(name)}; changed takes a field of the row, without $", value=name
        )
    if "value" not in value and op not in _DEFAULT_TRUE:
        raise InvalidArgument(f"{field}.value", f"{field}.value is missing; {op} compares with a value, null included")
    try:
        prepare = flag if op == CHANGED else OPERATORS[op].prepare
        prepared = prepare(value.get("value", True))
    except Unfit as rule:
        wanted = value["value"]
        told = shown(wanted) if isinstance(wanted, str) else kind(wanted)
        raise InvalidArgument(f"{field}.value", f"{field}.value is {told}; for {op} {rule}", op=op) from None
    return Predicate(name, path, op, value.get("value", MISSING), prepared)


def _string(value: Mapping[str, object], name: str, field: str) -> str:
    if name not in value:
        raise InvalidArgument(f"{field}.{name}", f"{field}.{name} is missing; a condition looks like {_EXAMPLE}")
    text = value[name]
    if not isinstance(text, str):
        raise InvalidArgument(f"{field}.{name}", f"{field}.{name} is {kind(text)}; it must be a string")
    return text


def _refuse_others(value: Mapping[str, object], allowed: tuple[str, ...], field: str) -> None:
    for name in value:
        if name not in allowed:
            raise InvalidArgument(
                field, f"{field} has the member {shown(name)}; beside it only {', '.join(allowed)} is known here"
            )


def _require_json(value: object, field: str) -> None:
    """Bounds of depth and size, so that whatever comes after may recurse; numbers must be finite."""
    size, level = 0, [value]
    for _ in range(2 * MAX_GROUP_DEPTH + MAX_VALUE_DEPTH):
        below: list[object] = []
        for each in level:
            size += len(each) if isinstance(each, str) else 8
            if isinstance(each, dict):
                size += sum(map(len, each))
                below += each.values()
            elif isinstance(each, list):
                below += each
            elif isinstance(each, float) and (each != each or abs(each) == float("inf")):
                raise InvalidArgument(field, f"{field} has the number {each}; numbers must be finite")
        if size + 8 * len(below) > MAX_SIZE:
            raise InvalidArgument(field, f"{field} is larger than {MAX_SIZE} characters", allowed=str(MAX_SIZE))
        if not below:
            return
        level = below
    raise InvalidArgument(field, f"{field} is nested too deep; at most {MAX_GROUP_DEPTH} groups are allowed")


_EXAMPLE: Final = '{"field": "amount", "op": "gt", "value": 100}'
