"""What the `config` of a trigger on changes of the database restricts them to, beside the conditions of the trigger.

operations    ["INSERT", "UPDATE"]      only these, of a pattern that means more
columns       ["status", "total"]       of updates only those that changed one of these; others are not concerned
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from server.errors import InvalidArgument
from server.fields import parse_choice, shown
from server.triggers.conditions import Condition
from server.triggers.parsing import parse
from server.triggers.patterns import CDC_OPERATIONS
from server.triggers.values import kind

CDC: Final = "cdc"
UPDATE: Final = "UPDATE"
CHANGE_KEYS: Final = ("operations", "columns")
MAX_COLUMNS: Final = 64
MAX_NAME_BYTES: Final = 63
"""Of an identifier in Postgres."""

NONE: Final[Mapping[str, Condition]] = MappingProxyType({})


def restrictions(event_type: str, config: Mapping[str, object], field: str = "config") -> Mapping[str, Condition]:
    """By the key that asks for each. InvalidArgument names it when it is wrong, or when nothing could ever fire."""
    found: dict[str, Condition] = {}
    meant = _operations_of(event_type)
    if "operations" in config:
        operations = _operations(config["operations"], f"{field}.operations", meant, event_type)
        meant = tuple(each for each in meant if each in operations)
        found["operations"] = _condition({"field": "$event.op", "op": "in", "value": operations})
    if "columns" in config:
        columns = _columns(config["columns"], f"{field}.columns")
        if UPDATE not in meant:
            raise InvalidArgument(
                f"{field}.columns", f"{field}.columns says which updates are meant, and this trigger answers none"
            )
        other = {"not": {"field": "$event.op", "op": "eq", "value": UPDATE}}
        changed = [{"field": escaped(name), "op": "changed"} for name in columns]
        found["columns"] = _condition({"any": [other, *changed]})
    return found or NONE


def escaped(column: str) -> str:
    """The path that leads to a column of the row."""
    return "".join(f"\\{char}" if char in "\\.$" else char for char in column)


def _condition(written: Mapping[str, Any]) -> Condition:
    return parse([written]).conditions[0]


def _operations_of(event_type: str) -> tuple[str, ...]:
    tokens = event_type.split(".")
    return (tokens[1],) if tokens[1:2] and tokens[1] in CDC_OPERATIONS else CDC_OPERATIONS


def _operations(value: object, field: str, meant: tuple[str, ...], event_type: str) -> list[str]:
    operations = _names(value, field, "an operation such as INSERT", len(CDC_OPERATIONS))
    for number, each in enumerate(operations):
        parse_choice(f"{field}[{number}]", each, CDC_OPERATIONS)
        if each not in meant:
            raise InvalidArgument(
                f"{field}[{number}]", f"{field}[{number}] is {each}, but event_type is {shown(event_type)}", value=each
            )
    return operations


def _columns(value: object, field: str) -> list[str]:
    columns = _names(value, field, "the name of a column", MAX_COLUMNS)
    for number, each in enumerate(columns):
        require_column(each, f"{field}[{number}]")
    return columns


def require_column(name: object, field: str) -> str:
    """What can be the name of a column, or of a table. InvalidArgument."""
    if not isinstance(name, str):
        raise InvalidArgument(field, f"{field} is {kind(name)}; it must be a name")
    size = len(name.encode(errors="surrogatepass"))
    if not 1 <= size <= MAX_NAME_BYTES or "\0" in name or any("\ud800" <= char <= "\udfff" for char in name):
        raise InvalidArgument(
            field, f"{field} is {shown(name)}; a name has 1 to {MAX_NAME_BYTES} bytes of UTF-8", value=name[:100]
        )
    return name


def _names(value: object, field: str, item: str, most: int) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidArgument(field, f"{field} must be a list of strings, each {item}")
    if not 1 <= len(value) <= most:
        raise InvalidArgument(
            field, f"{field} has {len(value)} items; it must have 1 to {most}", used=str(len(value)), allowed=str(most)
        )
    return value
