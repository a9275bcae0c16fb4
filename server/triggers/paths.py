r"""Dotted paths into an event.

    amount            data.amount
    customer.email    the member email of data.customer
    items.0.sku       the first element of the array data.items, its member sku
    $old.status       the row before a change of the database
    $event.type       any member of the event itself: type, source, time, subject, changed, table, …
    a\.b              the member whose name is "a.b": a backslash before a dot, a backslash or a dollar sign

A path leads to one value or to none. A member that is null is there; one that is absent is MISSING, and so is whatever
lies below a string, a number or null. An array is entered by index alone (0, 1, …): `items.sku` leads nowhere, so that
two conditions are never met by two different elements. Names are compared code point by code point.
"""

import enum
import functools
import re
from typing import Any, Final

from server.errors import InvalidArgument
from server.fields import shown

MAX_PATH_CHARS: Final = 512
MAX_SEGMENTS: Final = 16

Envelope = dict[str, Any]
"""An event as conditions see it: its members, as JSON in Python."""

Path = tuple[str, ...]
"""Names and indexes from the event itself: `amount` is ("data", "amount")."""


class Missing(enum.Enum):
    MISSING = "missing"

    def __repr__(self) -> str:
        return "missing"


MISSING: Final = Missing.MISSING


@functools.lru_cache(maxsize=4096)
def parse_path(text: str, field: str) -> Path:
    """InvalidArgument under `field` when it is no path."""
    if not 1 <= len(text) <= MAX_PATH_CHARS:
        raise InvalidArgument(
            field,
            f"{field} has {len(text)} characters; a path has 1 to {MAX_PATH_CHARS}",
            used=str(len(text)),
            allowed=str(MAX_PATH_CHARS),
        )
    if not _PATH.fullmatch(text):
        raise _refused(
            field, text, r"it must be names with a dot between each two; inside a name write \. \\ \$ for . \ and $"
        )
    written = _SEGMENT.findall(text)
    if len(written) > MAX_SEGMENTS:
        raise _refused(field, text, f"it has {len(written)} names; at most {MAX_SEGMENTS} are allowed")
    names = [_ESCAPED.sub(r"\1", name) for name in written]
    if not written[0].startswith("$"):
        return ("data", *names)
    if names[0] == "$old":
        return ("old", *names[1:])
    if names[0] == "$event":
        return tuple(names[1:])
    raise _refused(field, text, r"of the names that begin with $ only $old and $event are known; write \$ for your own")


def resolve(path: Path, event: Envelope) -> object:
    """The value there, or MISSING. Never raises."""
    value: object = event
    for name in path:
        if isinstance(value, dict):
            value = value.get(name, MISSING)
        elif isinstance(value, list):
            value = element(value, name)
        else:
            return MISSING
    return value


def element(values: list[object], name: str) -> object:
    """The element that a name stands for as an index, or MISSING."""
    if not _INDEX.fullmatch(name) or int(name) >= len(values):
        return MISSING
    return values[int(name)]


def _refused(field: str, text: str, rule: str) -> InvalidArgument:
    return InvalidArgument(field, f"{field} is {shown(text)}; {rule}", value=text[:100])


_NAME: Final = r"(?:[^.\\]|\\[.\\$])+"
_PATH: Final = re.compile(rf"{_NAME}(?:\.{_NAME})*", re.DOTALL)
_SEGMENT: Final = re.compile(_NAME, re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")
