"""condition: asks whether conditions hold, in the language of triggers (`server.triggers`).

config  {"conditions": […]}; their fields are the paths of templates: trigger.amount, steps.ID.output.total, run.id
output  true or false; edges out of the node are taken by it, `"branch": true` or `"branch": false`
"""

from collections.abc import Iterator
from typing import Any, Final

from server.errors import InvalidArgument
from server.triggers import parsing
from server.triggers.conditions import CHANGED, AllOf, AnyOf, Condition, Not, Predicate, evaluate
from server.triggers.paths import Path
from server.workflows import fields
from server.workflows.nodes.step import Attempt, Output
from server.workflows.templates import parse_reference

TIMEOUT_S: Final = 10.0


def parse(config: object, field: str) -> Any:
    given = fields.members(
        config, field, ("conditions",), required=("conditions",), of="the configuration of a condition node"
    )
    place = f"{field}.conditions"
    fields.array(given["conditions"], place, least=1, most=parsing.MAX_PREDICATES)
    conditions = parsing.parse(given["conditions"], place)
    for predicate in predicates(conditions):
        if predicate.op == CHANGED:
            raise InvalidArgument(place, f"{place} has the operator {CHANGED}, which only triggers know")
        parse_reference(predicate.field, place)
    return conditions


def paths(conditions: AllOf) -> Iterator[Path]:
    """What the conditions read."""
    for predicate in predicates(conditions):
        yield predicate.path[1:]


def predicates(condition: Condition) -> Iterator[Predicate]:
    if isinstance(condition, Predicate):
        yield condition
    elif isinstance(condition, Not):
        yield from predicates(condition.condition)
    elif isinstance(condition, AllOf | AnyOf):
        for each in condition.conditions:
            yield from predicates(each)


class ConditionNode:
    async def run(self, attempt: Attempt) -> Output:
        holds = evaluate(attempt.node.config, {"data": attempt.scope.members})
        return Output(json=b"true" if holds else b"false", branch=holds)
