"""What the source of a function seems to lead to, as types of events: a look at its text, which says "may" and no more.

    publish("order.paid"                        order.paid
    INSERT INTO orders, UPDATE "Orders" SET     cdc.INSERT.orders, cdc.UPDATE.Orders
    storage.put(, storage.delete(               storage.upload, storage.delete

What is put together while it runs is not seen, and what stands in a comment is. The text is a stranger's: each place
where one of the words stands is looked at once, as far as a few hundred bytes.
"""

import re
from collections.abc import Iterator
from typing import Final

from server.events.types import RESERVED, escape, family, is_event_type

MAX_LEADS: Final = 50
"""Of one source."""

MAX_PLACES: Final = 1_000
"""Where a word stands, of each word: some milliseconds."""

_NOT_WITHIN: Final = rb"(?<![\w$\x80-\xff])"
_SPACE: Final = rb"(?:\s|\\[nrt]){1,64}"
"""Also as it is written in a string."""

_NAME: Final = rb'(?:\\?"((?:[^"\\]|""){1,126})\\?"|([A-Za-z_\x80-\xff][\w$\x80-\xff]{0,62}))'
_TABLE: Final = _NAME.replace(b"(?:", b"(?:(?:", 1) + rb"\s{0,8}\.\s{0,8})?" + _NAME
_PUBLISH: Final = rb"publish\s{0,64}\(\s{0,64}(?:'([\w%.-]{1,255})'|\"([\w%.-]{1,255})\"|`([\w%.-]{1,255})`)"
_STORAGE: Final = rb"storage\s{0,8}\.\s{0,8}(put|delete)\s{0,8}\("
_OBJECTS: Final = {b"put": "storage.upload", b"delete": "storage.delete"}


def _written(statement: bytes) -> re.Pattern[bytes]:
    return re.compile(_NOT_WITHIN + statement.replace(b" ", _SPACE), re.IGNORECASE)


_CHANGES: Final = (
    (b"insert", _written(b"insert into " + _TABLE), ("INSERT",)),
    (b"merge", _written(b"merge into (?:only )?" + _TABLE), ("INSERT", "UPDATE", "DELETE")),
    (b"update", _written(b"update (?:only )?" + _TABLE + rb"(?: (?:as )?\w{1,63})? set\b"), ("UPDATE",)),
    (b"delete", _written(b"delete from (?:only )?" + _TABLE), ("DELETE",)),
    (b"truncate", _written(b"truncate table (?:only )?" + _TABLE), ("TRUNCATE",)),
)


def leads_of(source: bytes) -> tuple[str, ...]:
    """Types of events, each once; the first MAX_LEADS."""
    found: dict[str, None] = {}
    for event_type in _seen(source):
        found[event_type] = None
        if len(found) == MAX_LEADS:
            break
    return tuple(found)


def _seen(source: bytes) -> Iterator[str]:
    lowered = source.lower()  # of ASCII alone, so that places stay where they are
    for match in _places(source, source, b"publish", re.compile(_NOT_WITHIN + _PUBLISH)):
        event_type = next(group for group in match.groups() if group).decode()
        if is_event_type(event_type) and family(event_type) not in RESERVED:
            yield event_type
    for match in _places(source, source, b"storage", re.compile(_NOT_WITHIN + _STORAGE)):
        yield _OBJECTS[match[1]]
    for word, written, operations in _CHANGES:
        for match in _places(source, lowered, word, written):
            name = escape(_name(match))
            yield from (f"cdc.{operation}.{name}" for operation in operations)


def _places(source: bytes, lowered: bytes, word: bytes, written: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    at = lowered.find(word)
    for _ in range(MAX_PLACES):
        if at < 0:
            return
        if match := written.match(source, at):
            yield match
        at = lowered.find(word, at + len(word))


def _name(match: re.Match[bytes]) -> str:
    """Of the table: as it is quoted, or else in lower case, as Postgres reads it."""
    quoted, plain = match[3], match[4]
    name: bytes = plain.lower() if quoted is None else quoted.replace(b'""', b'"')
    return name.decode("utf-8", "replace")
