"""The Postgres protocol, version 3, as a client of hostile SQL needs it. Sans-IO: values to bytes, bytes to messages.

    to the server     type u8 · length u32 (itself included) · body      no type: StartupMessage, SSL-, CancelRequest
    to us             type u8 · length u32 (itself included) · body

Why not libpq: it hands out a message only once all of it is in memory, and a tenant decides how long a row is. One
`SELECT repeat('x', 900000000)` through libpq took our process from 37 MB to 1.8 GB, in chunked mode, too. `Inbox` reads
the length first and refuses. The second reason is `Flush`: a statement that is not followed by `Sync` has answered but
not committed, so a call that breaks a limit while its rows are read leaves no trace (see `server.postgres.session`).
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

PROTOCOL: Final = 3 << 16
SSL_REQUEST: Final = struct.pack(">ii", 8, 80877103)

FLUSH: Final = b"H\0\0\0\4"
SYNC: Final = b"S\0\0\0\4"
TERMINATE: Final = b"X\0\0\0\4"
EXECUTE: Final = b"E" + struct.pack(">i", 9) + b"\0" + struct.pack(">i", 0)  # the unnamed portal, all rows
DESCRIBE_PORTAL: Final = b"D" + struct.pack(">i", 6) + b"P\0"
DESCRIBE_STATEMENT: Final = b"D" + struct.pack(">i", 6) + b"S\0"

MAX_PARAMETERS: Final = 65_535

HEADER_BYTES: Final = 5

_HEADER = struct.Struct(">ci")
_I16 = struct.Struct(">h")
_U16 = struct.Struct(">H")
_I32 = struct.Struct(">i")
_COLUMN = struct.Struct(">IhIhih")


class WireError(Exception):
    """The server sent what the protocol does not allow here: the connection cannot be used any more."""


class MessageTooLarge(WireError):
    """A message longer than the Inbox takes; its body has not been read."""


class Message(NamedTuple):
    type: bytes
    body: bytes


class Column(NamedTuple):
    name: str
    type_oid: int


class Inbox:
    """Cuts a stream of bytes into messages, each at most `max_bytes` long."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. MessageTooLarge as soon as the header of such a message is there."""
        self._buffer += data
        messages: list[Message] = []
        at = 0
        try:
            while len(self._buffer) - at >= HEADER_BYTES:
                kind, length = header(self._buffer, at)
                if length > self._max_bytes:
                    raise MessageTooLarge(f"a message of {length} bytes, allowed {self._max_bytes}")
                if len(self._buffer) - at < 1 + length:
                    break
                messages.append(Message(kind, bytes(self._buffer[at + 5 : at + 1 + length])))
                at += 1 + length
        finally:
            del self._buffer[:at]
        return messages


def startup(parameters: Mapping[str, str]) -> bytes:
    """StartupMessage: user, database, and any setting by its name. These beat what `ALTER ROLE … SET` says."""
    body = _I32.pack(PROTOCOL) + b"".join(_text(part) for pair in parameters.items() for part in pair) + b"\0"
    return _I32.pack(4 + len(body)) + body


def cancel_request(process: int, key: int) -> bytes:
    return struct.pack(">iiiI", 16, 80877102, process, key)


def password(body: bytes) -> bytes:
    """PasswordMessage or SASLResponse, which share a type."""
    return _message(b"p", body)


def sasl_initial(mechanism: str, response: bytes) -> bytes:
    return password(_text(mechanism) + _I32.pack(len(response)) + response)


def query(sql: str) -> bytes:
    """Query, of the simple protocol: for commands of a walsender, which have no other."""
    return _message(b"Q", _text(sql))


def copy_data(body: bytes) -> bytes:
    return _message(b"d", body)


def header(data: bytes | bytearray, at: int = 0) -> tuple[bytes, int]:
    """Type and length, itself included, of the message that begins with the HEADER_BYTES there. WireError."""
    kind, length = _HEADER.unpack_from(data, at)
    if length < 4:
        raise WireError(f"a message of length {length}")
    return kind, length


def parse(sql: str, types: Sequence[int]) -> bytes:
    """Parse into the unnamed statement. `types` are the parameters' OIDs, 0 to let the server infer one."""
    return _message(b"P", b"\0" + _text(sql) + _U16.pack(len(types)) + struct.pack(f">{len(types)}I", *types))


def bind(values: Sequence[bytes | None]) -> bytes:
    """Bind the unnamed portal; parameters and results in text format, None is NULL."""
    parts = [b"\0\0", _I16.pack(0), _U16.pack(len(values))]
    for value in values:
        parts += (b"\xff\xff\xff\xff",) if value is None else (_I32.pack(len(value)), value)
    return _message(b"B", b"".join([*parts, _I16.pack(0)]))


def statement(sql: str, types: Sequence[int] = (), values: Sequence[bytes | None] = ()) -> bytes:
    """Run one statement whose rows, if any, are not described."""
    return parse(sql, types) + bind(values) + EXECUTE


def columns(body: bytes) -> list[Column]:
    """RowDescription."""
    (count,) = _U16.unpack_from(body)
    found: list[Column] = []
    at = 2
    for _ in range(count):
        end = body.index(0, at)
        _table, _attribute, oid, _size, _modifier, _format = _COLUMN.unpack_from(body, end + 1)
        found.append(Column(body[at:end].decode("utf-8", "replace"), oid))
        at = end + 1 + _COLUMN.size
    return found


def row(body: bytes) -> list[bytes | None]:
    """DataRow, in text format."""
    (count,) = _U16.unpack_from(body)
    values: list[bytes | None] = []
    at = 2
    for _ in range(count):
        (length,) = _I32.unpack_from(body, at)
        at += 4
        if length < 0:
            values.append(None)
        else:
            values.append(body[at : at + length])
            at += length
    return values


def parameter_types(body: bytes) -> list[int]:
    """ParameterDescription."""
    (count,) = _U16.unpack_from(body)
    return list(struct.unpack_from(f">{count}I", body, 2))


def fields(body: bytes) -> dict[str, str]:
    """ErrorResponse: C is the SQLSTATE, M the message, D detail, H hint, P position, W context."""
    parts = body.split(b"\0")
    return {part[:1].decode("latin-1"): part[1:].decode("utf-8", "replace") for part in parts if part}


def _message(kind: bytes, body: bytes) -> bytes:
    return _HEADER.pack(kind, 4 + len(body)) + body


def _text(value: str) -> bytes:
    encoded = value.encode()
    if b"\0" in encoded:
        raise ValueError("a NUL character")
    return encoded + b"\0"
