"""Arguments of a host call as the sandbox sent them: JSON text that nobody has checked yet."""

from typing import Final

import orjson

from engines.contract import HostError

MAX_SEPARATORS: Final = 100_000
"""Commas and opening brackets of one call's arguments, in texts as well: a value costs 0.3 µs of the event loop."""


def read(name: str, args: bytes, *, least: int, most: int) -> list[object]:
    """The arguments, padded with None to `most`. HostError("invalid_argument") unless `args` is such an array."""
    if len(args) > MAX_SEPARATORS and sum(map(args.count, (b",", b"[", b"{"))) > MAX_SEPARATORS:
        raise invalid(name, f"the arguments have more than {MAX_SEPARATORS} commas and brackets; make several calls")
    try:
        values = orjson.loads(args)
    except orjson.JSONDecodeError:
        raise invalid(name, "the arguments are not JSON; a text may hold half of a surrogate pair") from None
    if not isinstance(values, list):
        raise invalid(name, f"the arguments must be an array, got {kind(values)}")
    if not least <= len(values) <= most:
        allowed = f"{least}" if least == most else f"{least} to {most}"
        raise invalid(name, f"takes {allowed} arguments, got {len(values)}")
    return values + [None] * (most - len(values))


def options(name: str, field: str, value: object, known: frozenset[str]) -> dict[str, object]:
    """An object with known fields only; null is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(name, f"{field} must be an object, got {kind(value)}")
    for key in value:
        if key not in known:
            raise invalid(name, f"{field} has the unknown field {key[:40]!r}; known are {', '.join(sorted(known))}")
    return value


def string(name: str, field: str, value: object) -> str:
    if not isinstance(value, str):
        raise invalid(name, f"{field} must be a string, got {kind(value)}")
    return value


def number(name: str, field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(name, f"{field} must be a number, got {kind(value)}")
    return value


def whole(name: str, field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(name, f"{field} must be a whole number, got {kind(value)}")
    return value


def array(name: str, field: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise invalid(name, f"{field} must be an array, got {kind(value)}")
    return value


def json_text(name: str, field: str, value: object) -> bytes:
    """The value as JSON again."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise invalid(name, f"{field} is nested too deep") from None


def invalid(name: str, message: str) -> HostError:
    return HostError("invalid_argument", f"{name}: {message}")


def kind(value: object) -> str:
    """What JavaScript calls it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"
