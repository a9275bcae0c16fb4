"""Messages of Postgres' output plugin `pgoutput` (protocol 4, values as text), from bytes. Pure.

    Begin ─▶ (Relation | Insert | Update | Delete | Truncate | Emitted | Other)* ─▶ Commit ─▶ Begin …

A Relation precedes the first row of its table and each one after the table was altered. Large transactions are not
streamed before they commit: the server spills them to its disk, and what comes, comes in the order of commits.
Whatever is no such message raises ProtocolError and nothing else.
"""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

OMITTED_KIND: Final = 0x6F  # "o"
"""Of a value in a tuple, beside pgoutput's own n, u, t, b: too large to be kept (see `server.cdc.frames`)."""


class ProtocolError(Exception):
    """The bytes are no message that pgoutput sends, or not one that may come now."""


class Missing(enum.Enum):
    UNCHANGED = "u"
    """Stored out of line and not changed by the UPDATE, so that it was not logged."""
    OMITTED = "o"


Value = bytes | None | Missing
Row = Sequence[Value]


class Begin(NamedTuple):
    commit_lsn: int
    commit_us: int
    """Microseconds since 2000-01-01 UTC."""
    xid: int


class Commit(NamedTuple):
    commit_lsn: int
    end_lsn: int
    """Of the byte after the commit's record: what is acknowledged."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type_oid: int
    key: bool
    """Part of the replica identity."""


@dataclass(frozen=True, slots=True)
class Relation:
    oid: int
    schema: str
    table: str
    identity: str
    """As pg_class.relreplident: f full, d default, …"""
    columns: tuple[Column, ...]


class Insert(NamedTuple):
    relation: int
    new: Row


class Update(NamedTuple):
    """`old` is the whole row before when `whole`, else its key when that changed, else None."""

    relation: int
    old: Row | None
    whole: bool
    new: Row


class Delete(NamedTuple):
    relation: int
    old: Row
    whole: bool


class Truncate(NamedTuple):
    relations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Emitted:
    """By pg_logical_emit_message, which tenants reach through `atlas_run.cause` alone."""

    transactional: bool
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Other:
    """A type, or an origin: nothing that we need."""


Message = Begin | Commit | Relation | Insert | Update | Delete | Truncate | Emitted | Other


def decode(body: bytes) -> Message:
    """The message. ProtocolError."""
    try:
        return _decode(body)
    except (struct.error, IndexError, ValueError) as why:
        raise ProtocolError(f"a message {body[:1]!r} of {len(body)} bytes is malformed: {why}") from None


def _decode(body: bytes) -> Message:
    kind = body[:1]
    match kind:
        case b"I":
            (relation,) = _U32.unpack_from(body, 1)
            new, end = _row(body, _expect(body, 5, b"N"))
            message: Message = Insert(relation, new)
        case b"U":
            (relation,) = _U32.unpack_from(body, 1)
            old: Row | None = None
            at, before = 5, body[5:6]
            if before in (b"K", b"O"):
                old, at = _row(body, 6)
            new, end = _row(body, _expect(body, at, b"N"))
            message = Update(relation, old, before == b"O", new)
        case b"D":
            (relation,) = _U32.unpack_from(body, 1)
            if body[5:6] not in (b"K", b"O"):
                raise ValueError("no old row")
            gone, end = _row(body, 6)
            message = Delete(relation, gone, body[5:6] == b"O")
        case b"B":
            message, end = Begin(*_BEGIN.unpack_from(body, 1)), 1 + _BEGIN.size
        case b"C":
            _flags, commit_lsn, end_lsn, _time = _COMMIT.unpack_from(body, 1)
            message, end = Commit(commit_lsn, end_lsn), 1 + _COMMIT.size
        case b"R":
            message, end = _relation(body)
        case b"T":
            count, _options = _TRUNCATE.unpack_from(body, 1)
            end = 1 + _TRUNCATE.size + 4 * count
            message = Truncate(struct.unpack_from(f">{count}I", body, 1 + _TRUNCATE.size))
        case b"M":
            message, end = _emitted(body)
        case b"Y" | b"O":
            return Other()
        case _:
            raise ValueError("unknown type")
    if end != len(body):
        raise ValueError(f"it should end at {end}")
    return message


def _row(body: bytes, at: int) -> tuple[Row, int]:
    """The tuple that begins there, and where it ends."""
    (count,) = _U16.unpack_from(body, at)
    at += 2
    values: list[Value] = []
    for _ in range(count):
        kind = body[at]
        at += 1
        if kind == 0x74:  # t
            (length,) = _U32.unpack_from(body, at)
            at += 4
            values.append(body[at : at + length])
            at += length
        elif kind == 0x6E:  # n
            values.append(None)
        elif kind == 0x75:  # u
            values.append(Missing.UNCHANGED)
        elif kind == OMITTED_KIND:
            values.append(Missing.OMITTED)
        else:
            raise ValueError(f"a value of kind {kind}")
    if at > len(body):
        raise ValueError("a value ends outside")
    return values, at


def _relation(body: bytes) -> tuple[Relation, int]:
    (oid,) = _U32.unpack_from(body, 1)
    schema, at = _text(body, 5)
    table, at = _text(body, at)
    identity = chr(body[at])
    (count,) = _U16.unpack_from(body, at + 1)
    at += 3
    columns: list[Column] = []
    for _ in range(count):
        key = bool(body[at] & 1)
        name, at = _text(body, at + 1)
        type_oid, _modifier = _TYPE.unpack_from(body, at)
        at += _TYPE.size
        columns.append(Column(name, type_oid, key))
    return Relation(oid, schema or "pg_catalog", table, identity, tuple(columns)), at


def _emitted(body: bytes) -> tuple[Emitted, int]:
    flags, _lsn = _EMITTED.unpack_from(body, 1)
    prefix, at = _text(body, 1 + _EMITTED.size)
    (length,) = _U32.unpack_from(body, at)
    return Emitted(bool(flags & 1), prefix, body[at + 4 : at + 4 + length]), at + 4 + length


def _text(body: bytes, at: int) -> tuple[str, int]:
    end = body.index(0, at)
    return body[at:end].decode("utf-8", "replace"), end + 1


def _expect(body: bytes, at: int, kind: bytes) -> int:
    if body[at : at + 1] != kind:
        raise ValueError(f"{kind!r} is missing at {at}")
    return at + 1


_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_BEGIN: Final = struct.Struct(">QqI")
_COMMIT: Final = struct.Struct(">BQQq")
_TRUNCATE: Final = struct.Struct(">IB")
_TYPE: Final = struct.Struct(">Ii")
_EMITTED: Final = struct.Struct(">BQ")
