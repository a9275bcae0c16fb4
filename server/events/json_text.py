"""JSON that is passed on as it was written: digits of numbers and order of members survive; what it means is beside it.

Hostile texts cost little: their size is known to the caller, their values are counted before they are made, and nesting
ends at MAX_DEPTH.
"""

import json.decoder
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

MAX_VALUES: Final = 100_000
"""Commas and opening brackets of one text: each may cost 100 ns of the event loop, here and wherever it is read."""

MAX_DEPTH: Final = 64


class JsonError(ValueError):
    """The text is not JSON, or more of it than allowed; the message says which."""


@dataclass(frozen=True, slots=True)
class Json:
    """One JSON value: its text, and that in Python. Whole numbers are exact, others doubles; strings may hold lone
    surrogates. Equal when the texts are."""

    text: str
    value: Any = field(compare=False, repr=False)


def read(raw: bytes) -> Json:
    """The value of a whole text (RFC 8259, in UTF-8). JsonError."""
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > MAX_VALUES:
        raise JsonError(f"{values} commas and opening brackets; at most {MAX_VALUES} are allowed")
    try:
        text = raw.decode()
    except UnicodeDecodeError as why:
        raise JsonError(f"byte {why.start} is no UTF-8") from None
    at = _space(text, 0)
    found, end = _value(text, at)
    if _space(text, end) != len(text):
        raise JsonError(f"something follows the value at character {end}")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _require_shallow(found)
    return Json(text[at:end], found)


def members(whole: Json) -> dict[str, Json]:
    """The members of an object that `read` returned, each with its text. JsonError for another value, and for a name
    that is there twice."""
    if not isinstance(whole.value, dict):
        raise JsonError("it is no object")
    found: dict[str, Json] = {}
    for name, part in _parts(whole.text):
        if name in found:
            raise JsonError(f"it has the member {name[:40]!r} twice")
        found[name] = part
    return found


def elements(whole: Json) -> list[Json]:
    """The elements of an array that `read` returned, each with its text. JsonError for another value."""
    if not isinstance(whole.value, list):
        raise JsonError("it is no array")
    return [part for _, part in _parts(whole.text)]


def _parts(text: str) -> Iterator[tuple[str, Json]]:
    """What is in an object or an array, with names or without, of a text that is known to be well formed."""
    at, name = _space(text, 1), ""
    while text[at] not in "]}":
        if text[0] == "{":
            name, at = _string(text, at + 1)
            at = _space(text, _space(text, at) + 1)  # behind the colon
        value, end = _value(text, at)
        yield name, Json(text[at:end], value)
        at = _space(text, end)
        if text[at] == ",":
            at = _space(text, at + 1)


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends."""
    try:
        return _scan(text, at)
    except StopIteration as why:
        raise JsonError(f"a value is missing at character {why.value}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as why:  # JSONDecodeError, or a number of more digits than Python converts
        raise JsonError(str(why)[:200]) from None


def _space(text: str, at: int) -> int:
    if text[at : at + 1] not in _SPACES:
        return at
    found = _SPACE.match(text, at)
    assert found
    return found.end()


def _require_shallow(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> JsonError:
    return JsonError(f"it is nested deeper than {MAX_DEPTH} levels")


def _no_json(name: str) -> float:
    raise JsonError(f"{name} is no JSON")


_SPACES: Final = frozenset(" \t\n\r")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_scan: Final[Callable[[str, int], tuple[Any, int]]] = vars(json.JSONDecoder(parse_constant=_no_json))["scan_once"]
_string: Final[Callable[[str, int], tuple[str, int]]] = vars(json.decoder)["scanstring"]
