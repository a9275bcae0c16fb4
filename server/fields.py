"""Checks of single request fields: the clean value, or InvalidArgument that says field, value and rule."""

import json
import re
import unicodedata
from collections.abc import Collection
from typing import Final

from server.errors import InvalidArgument

MAX_NAME_CHARS: Final = 100

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_UNPRINTABLE: Final = frozenset(("Cc", "Cs", "Zl", "Zp"))  # controls, lone surrogates, line and paragraph separators


def shown(value: str) -> str:
    """A hostile string as a message may quote it: in quotes, escaped, at most 40 characters of it."""
    return json.dumps(value if len(value) <= 40 else value[:40] + "…", ensure_ascii=False)


def well_formed(text: str) -> str:
    """The text with a question mark for each lone surrogate, which UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def storable(text: str) -> str:
    """The text as Postgres takes it: well formed, and without U+0000."""
    return well_formed(text).replace("\0", "\N{REPLACEMENT CHARACTER}")


def is_id(value: str) -> bool:
    """Whether it is a UUID, in either case."""
    return _UUID.fullmatch(value.lower()) is not None


def parse_id(field: str, value: str) -> str:
    """A UUID as 36 characters in lower case."""
    lowered = value.lower()
    if not _UUID.fullmatch(lowered):
        raise InvalidArgument(field, f"{field} is {shown(value)}; it must be a UUID", value=value[:100])
    return lowered


def parse_name(field: str, value: str, *, required: bool = True, most: int = MAX_NAME_CHARS) -> str:
    """A label for people: 1 (0 unless required) to `most` characters in one line, not blank."""
    if required and not value:
        raise InvalidArgument(field, f"{field} is missing; it must have 1 to {most} characters")
    if value and not value.strip():
        raise InvalidArgument(field, f"{field} is blank; it must have a visible character")
    if len(value) > most:
        raise InvalidArgument(
            field,
            f"{field} has {len(value)} characters; at most {most} are allowed",
            used=str(len(value)),
            allowed=str(most),
        )
    if value.isascii() and value.isprintable():
        return value
    for place, char in enumerate(value):
        if unicodedata.category(char) in _UNPRINTABLE:
            raise InvalidArgument(
                field, f"{field} has the control character U+{ord(char):04X} at position {place}; use printable text"
            )
    return value


def parse_choice(field: str, value: str, allowed: Collection[str]) -> str:
    """One of `allowed`."""
    if value not in allowed:
        choices = ", ".join(allowed)
        raise InvalidArgument(
            field, f"{field} is {shown(value)}; it must be one of {choices}", value=value[:100], allowed=choices
        )
    return value
