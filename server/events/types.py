"""Event types: the tokens after `atlasdb.events.` in the subject of an event.

    cdc.INSERT.orders     storage.upload     auth.signup     order.paid     cdc.UPDATE.two%20words

A token has letters, digits, `_` and `-`; every other byte of a name in UTF-8 is written as `%` and two upper-case
hexadecimal digits. A name has one spelling only, so that types are compared as they are.
"""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from server.errors import InvalidArgument
from server.fields import shown

MAX_TYPE_CHARS: Final = 255
MAX_TOKENS: Final = 8

RESERVED: Final = ("cdc", "cron")
"""Families (first tokens) that only we publish."""


def is_event_type(value: str) -> bool:
    return len(value) <= MAX_TYPE_CHARS and value.count(".") < MAX_TOKENS and _TYPE.fullmatch(value) is not None


def parse_event_type(field: str, value: str) -> str:
    """The type as it is, reserved or not; InvalidArgument when it is none."""
    if not value:
        raise InvalidArgument(field, f"{field} is missing; it is a type such as order.paid")
    if not is_event_type(value):
        raise InvalidArgument(
            field,
            f"{field} is {shown(value)}; it must be 1 to {MAX_TOKENS} tokens with dots between, each of letters, "
            f"digits, _ and - (other bytes as %XX), at most {MAX_TYPE_CHARS} characters in all",
            value=value[:100],
        )
    return value


def parse_publishable(field: str, value: str) -> str:
    """A type that a tenant may publish: not of a reserved family."""
    if family(parse_event_type(field, value)) in RESERVED:
        raise InvalidArgument(
            field,
            f"{field} is {shown(value)}; events of the families {' and '.join(RESERVED)} are made by the service alone",
            reason="EVENT_TYPE_RESERVED",
            value=value[:100],
        )
    return value


def family(event_type: str) -> str:
    """The first token."""
    return event_type.partition(".")[0]


def escape(name: str) -> str:
    """The token of a name, of a table for example. ValueError for an empty one and for lone surrogates."""
    if not name:
        raise ValueError("a token cannot be empty")
    return _ODD.sub(lambda found: b"%%%02X" % found[0][0], name.encode()).decode()


def unescape(token: str) -> str:
    """The name of a token that `escape` made."""
    return unquote_to_bytes(token).decode()


_ODD: Final = re.compile(rb"[^A-Za-z0-9_-]")
_PLAIN: Final = "2D|3[0-9]|4[1-9A-F]|5[0-9A]|5F|6[1-9A-F]|7[0-9A]"
_TOKEN: Final = rf"(?:[A-Za-z0-9_-]|%(?!{_PLAIN})[0-9A-F]{{2}})+"
_TYPE: Final = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
