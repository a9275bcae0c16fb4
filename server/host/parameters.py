"""Values of JavaScript as parameters of a statement: what type each is said to have, and its text.

A value has the type it would have if it stood in the SQL itself:

    5            integer, bigint or numeric by size       "x"                 unknown: Postgres infers it
    1.5          numeric                                  null                unknown
    true         boolean                                  {"a": 1}            jsonb
    [1, 2]       integer[]; likewise bigint, numeric,     [{"a": 1}]          jsonb
                 boolean; else text[]                     {"$bytes": "3q0="}  bytea, from base64

Where Postgres finds no operator or cast for that (a number for a text column, a list for a jsonb column, strings for a
uuid[]), it is asked what type it expects there instead, and `text` writes the value for that type.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Final

import orjson

from engines.contract import HostError
from server.postgres.wire import MAX_PARAMETERS

UNKNOWN: Final = 0
BOOL, BYTEA, INT8, INT4, TEXT, NUMERIC, JSONB = 16, 17, 20, 23, 25, 1700, 3802
JSON_TYPES: Final = frozenset((114, JSONB))
JSON_ARRAYS: Final = frozenset((199, 3807))
ARRAY_OF: Final = {BOOL: 1000, BYTEA: 1001, INT8: 1016, INT4: 1007, NUMERIC: 1231}
TEXT_ARRAY: Final = 1009
MAX_DEPTH: Final = 6  # of an array in Postgres

Value = object


def check(values: Sequence[Value]) -> None:
    """HostError("invalid_argument") that names the parameter Postgres cannot store."""
    if len(values) > MAX_PARAMETERS:
        raise _invalid(f"params has {len(values)} values, at most {MAX_PARAMETERS} are allowed")
    for index, value in enumerate(values):
        if isinstance(value, str) and "\0" in value:
            raise _invalid(f"params[{index}] contains the character U+0000, which Postgres cannot store")
        if isinstance(value, list) and not _holds_objects(value) and _depth(value) > MAX_DEPTH:
            raise _invalid(f"params[{index}] is an array nested deeper than {MAX_DEPTH}")
        for leaf in _leaves(value):
            if isinstance(leaf, str) and "\0" in leaf:
                raise _invalid(f"params[{index}] contains the character U+0000, which Postgres cannot store")
            if _is_bytes(leaf):
                try:
                    _bytes(leaf)
                except (binascii.Error, ValueError):
                    raise _invalid(f"params[{index}].$bytes is not base64") from None


def literal_type(value: Value) -> int:
    """The OID of the type the value would have in SQL; UNKNOWN to let Postgres infer it."""
    if isinstance(value, list):
        leaves = list(_leaves(value))
        if any(isinstance(leaf, dict) and not _is_bytes(leaf) for leaf in leaves):
            return JSONB
        kinds = {literal_type(leaf) for leaf in leaves if leaf is not None}
        if kinds and kinds <= {INT4, INT8, NUMERIC}:
            return ARRAY_OF[NUMERIC if NUMERIC in kinds else INT8 if INT8 in kinds else INT4]
        return ARRAY_OF.get(kinds.pop(), TEXT_ARRAY) if len(kinds) == 1 else TEXT_ARRAY
    if isinstance(value, dict):
        return BYTEA if _is_bytes(value) else JSONB
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return INT4 if -(2**31) <= value < 2**31 else INT8 if -(2**63) <= value < 2**63 else NUMERIC
    return NUMERIC if isinstance(value, float) else UNKNOWN


def text(value: Value, type_oid: int) -> bytes | None:
    """The value as Postgres reads it for that type; None is NULL."""
    if isinstance(value, list) and type_oid not in JSON_TYPES:
        return _array(value, json_elements=type_oid in JSON_ARRAYS).encode()
    return _scalar(value)


def _scalar(value: Value) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if _is_bytes(value):
        return b"\\x" + _bytes(value).hex().encode()
    return orjson.dumps(value)


def _array(items: list[Value], *, json_elements: bool) -> str:
    parts: list[str] = []
    for item in items:
        if item is None:
            parts.append("NULL")
        elif isinstance(item, list):
            parts.append(_array(item, json_elements=json_elements))
        elif isinstance(item, bool | int | float):
            parts.append(orjson.dumps(item).decode())
        else:
            raw = orjson.dumps(item) if json_elements else _scalar(item) or b""
            parts.append('"' + raw.decode().replace("\\", "\\\\").replace('"', '\\"') + '"')
    return "{" + ",".join(parts) + "}"


def _is_bytes(value: Value) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("$bytes"), str)


def _bytes(value: Value) -> bytes:
    assert isinstance(value, dict)
    return base64.b64decode(value["$bytes"], validate=True)


def _leaves(value: Value) -> list[Value]:
    found: list[Value] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        else:
            found.append(item)
    return found


def _holds_objects(value: list[Value]) -> bool:
    return any(isinstance(leaf, dict) and not _is_bytes(leaf) for leaf in _leaves(value))


def _depth(value: Value) -> int:
    depth, level = 0, [value]
    while level := [item for items in level if isinstance(items, list) for item in [*items, None]]:
        depth += 1
    return depth


def _invalid(message: str) -> HostError:
    return HostError("invalid_argument", f"atlas.db.query: {message}")
