"""Well-known protobuf types: Value to JSON text and back, for gRPC clients (REST never comes here), and Timestamp."""

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from server.errors import FunctionFailed, InvalidArgument
from server.fields import well_formed

MAX_DEPTH: Final = 30
"""Levels of nesting in an answer. Protobuf parsers refuse messages nested over 100 deep; a level takes three."""


MAX_VALUES: Final = 50_000
"""In one message: each costs a microsecond of the event loop, here and nowhere else."""


def to_json(value: struct_pb2.Value, *, field: str) -> bytes:
    """JSON text of a Value; unset is null.

    InvalidArgument for numbers that JSON does not have, and for more than MAX_VALUES values.
    """
    return orjson.dumps(_Plain(field).of(value))


def to_json_each(values: Iterable[struct_pb2.Value], *, field: str) -> list[bytes]:
    """JSON texts of Values that share the bound of MAX_VALUES. InvalidArgument as for one."""
    plain = _Plain(field)
    return [orjson.dumps(plain.of(value)) for value in values]


def fill_from_json(value: struct_pb2.Value, text: bytes) -> None:
    """Make it the Value of JSON text. Lone surrogates, which protobuf cannot hold, become question marks.

    FunctionFailed when that is nested deeper than a protobuf client can read, or has more than MAX_VALUES values.
    """
    if len(text) > MAX_VALUES and sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise FunctionFailed(
            f"The function's result has more than {MAX_VALUES} values; invoke it over REST to read it",
            reason="RESULT_TOO_MANY_VALUES",
            metadata={"allowed": str(MAX_VALUES)},
        )
    _fill(value, _loaded(text), 0)


def timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment(field: str, stamp: Timestamp) -> datetime:
    """InvalidArgument outside the years 1 to 9999."""
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            field, f"{field} is {stamp.seconds} s after 1970; it must be in the years 1 to 9999"
        ) from None


class _Plain:
    """Python objects of one message's Values, counted."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._left = MAX_VALUES

    def of(self, value: struct_pb2.Value) -> Any:
        self._left -= 1
        if self._left < 0:
            raise InvalidArgument(
                self._field,
                f"{self._field} has more than {MAX_VALUES} values; send it as JSON over REST",
                allowed=str(MAX_VALUES),
            )
        match value.WhichOneof("kind"):
            case "number_value":
                return self._number(value.number_value)
            case "string_value":
                return value.string_value
            case "bool_value":
                return value.bool_value
            case "struct_value":
                return {name: self.of(item) for name, item in value.struct_value.fields.items()}
            case "list_value":
                return [self.of(item) for item in value.list_value.values]
            case _:
                return None

    def _number(self, number: float) -> float:
        if number.is_integer() and abs(number) < 2**53:
            return int(number)
        if not math.isfinite(number):
            raise InvalidArgument(self._field, f"{self._field} holds the number {number}, which JSON does not have")
        return number


def _loaded(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # deep, or with escaped lone surrogates, which JSON may hold
        pass
    try:
        return json.loads(text)
    except RecursionError:
        raise _too_deep() from None


def _fill(target: struct_pb2.Value, value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _too_deep()
    if value is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif value is True or value is False:
        target.bool_value = value
    elif isinstance(value, int | float):
        target.number_value = value
    elif isinstance(value, str):
        target.string_value = well_formed(value)
    elif isinstance(value, dict):
        fields = target.struct_value.fields
        target.struct_value.SetInParent()
        for name, item in value.items():
            _fill(fields[well_formed(name)], item, depth + 1)
    else:
        values = target.list_value.values
        target.list_value.SetInParent()
        for item in value:
            _fill(values.add(), item, depth + 1)


def _too_deep() -> FunctionFailed:
    return FunctionFailed(
        f"The function's result is nested deeper than {MAX_DEPTH} levels; invoke it over REST to read it",
        reason="RESULT_TOO_DEEP",
        metadata={"allowed": str(MAX_DEPTH)},
    )
