"""Well-known protobuf types: Value to JSON text and back, for gRPC clients (REST never comes here), and Timestamp."""

import math
from datetime import datetime
from typing import Any, Final

import orjson
from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from server.errors import FunctionFailed, InvalidArgument

MAX_DEPTH: Final = 30
"""Levels of nesting in an answer. Protobuf parsers refuse messages nested over 100 deep; a level takes three."""


def to_json(value: struct_pb2.Value, *, field: str) -> bytes:
    """JSON text of a Value; unset is null. InvalidArgument for numbers that JSON does not have."""
    return orjson.dumps(_plain(value, field))


def fill_from_json(value: struct_pb2.Value, text: bytes) -> None:
    """Make it the Value of JSON text. FunctionFailed when that is nested deeper than a protobuf client can read."""
    _fill(value, orjson.loads(text), 0)


def timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _plain(value: struct_pb2.Value, field: str) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if number.is_integer() and abs(number) < 2**53:
                return int(number)
            if not math.isfinite(number):
                raise InvalidArgument(field, f"{field} holds the number {number}, which JSON does not have")
            return number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return {name: _plain(item, field) for name, item in value.struct_value.fields.items()}
        case "list_value":
            return [_plain(item, field) for item in value.list_value.values]
        case _:
            return None


def _fill(target: struct_pb2.Value, value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise FunctionFailed(
            f"The function's result is nested deeper than {MAX_DEPTH} levels; invoke it over REST to read it",
            reason="RESULT_TOO_DEEP",
            metadata={"allowed": str(MAX_DEPTH)},
        )
    if value is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif value is True or value is False:
        target.bool_value = value
    elif isinstance(value, int | float):
        target.number_value = value
    elif isinstance(value, str):
        target.string_value = value
    elif isinstance(value, dict):
        fields = target.struct_value.fields
        target.struct_value.SetInParent()
        for name, item in value.items():
            _fill(fields[name], item, depth + 1)
    else:
        values = target.list_value.values
        target.list_value.SetInParent()
        for item in value:
            _fill(values.add(), item, depth + 1)
