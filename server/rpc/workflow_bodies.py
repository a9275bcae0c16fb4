"""Bodies of requests about workflows over REST: JSON objects whose members are passed on as they were written."""

from collections.abc import Sequence
from typing import Final

from google.protobuf import struct_pb2

from server.errors import InvalidArgument
from server.events.json_text import Json, JsonError, Scanner, read
from server.fields import shown
from server.rpc.values import to_json
from server.workflows.definition import MAX_BYTES

MAX_BODY_BYTES: Final = 2 * 1024 * 1024


def members(body: bytes, known: Sequence[str]) -> dict[str, Json]:
    """The members of the object; empty when there is no body. InvalidArgument for any other name."""
    if len(body) > MAX_BODY_BYTES:
        raise InvalidArgument(
            "body",
            f"The request has {len(body)} bytes; at most {MAX_BODY_BYTES} are allowed",
            reason="REQUEST_TOO_LARGE",
            used=str(len(body)),
            allowed=str(MAX_BODY_BYTES),
        )
    if not body.strip():
        return {}
    try:
        scanner = Scanner(body)
        found = {name: scanner.value() for name in scanner.members()}
        scanner.end()
    except JsonError as why:
        raise InvalidArgument("body", f"The request body is not a JSON object: {why}") from None
    for name in found:
        if name not in known:
            raise InvalidArgument(name[:40], f"{shown(name)} is unknown; the body has {', '.join(known)}")
    return found


def required(found: dict[str, Json], name: str) -> Json:
    if name not in found:
        raise InvalidArgument(name, f"{name} is missing")
    return found[name]


def text(found: dict[str, Json], name: str) -> str:
    """A string; empty when it is absent."""
    value = found[name].value if name in found else ""
    if not isinstance(value, str):
        raise InvalidArgument(name, f"{name} must be a string")
    return value


def definition_of(struct: struct_pb2.Struct) -> Json:
    """Of a gRPC client. InvalidArgument when there is too much of it."""
    if struct.ByteSize() > 4 * MAX_BYTES:
        raise InvalidArgument("definition", f"definition is larger than {MAX_BYTES} bytes", allowed=str(MAX_BYTES))
    return value_of(struct_pb2.Value(struct_value=struct), "definition")


def value_of(value: struct_pb2.Value, field: str) -> Json:
    try:
        return read(to_json(value, field=field))
    except JsonError as why:
        raise InvalidArgument(field, f"{field}: {why}") from None
