"""What a walsender sends while it streams, cut from bytes, in bounded memory. Sans-IO.

    CopyData "d"   w  start u64 · end u64 · time i64 · message of pgoutput        Logged
                   k  end u64 · time i64 · reply wanted u8                        Keepalive
    anything else  E error, c CopyDone, N notice, …                               wire.Message

A tenant decides how long a row is: up to 1 GB, twice that when the old row is beside it. Of a frame that is larger than
MAX_FRAME_BYTES values are let pass unread, and stand in the message as omitted:

    head ─▶ (whole ≤ MAX_FRAME_BYTES) ─▶ head              head ─▶ squeezing: take, skip, take … ─▶ head
"""

import struct
from collections.abc import Generator
from typing import Final, NamedTuple

from server.cdc.pgoutput import OMITTED_KIND, ProtocolError
from server.postgres.wire import HEADER_BYTES, Message, WireError, header

MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
KEPT_VALUE_BYTES: Final = 1024 * 1024
"""Of a larger frame; a larger value fits into no event."""

KEPT_BYTES: Final = 8 * 1024 * 1024
"""Of all values of a larger frame: what comes first is kept."""


class Logged(NamedTuple):
    body: bytes


class Keepalive(NamedTuple):
    end_lsn: int
    """Up to here the server has sent everything that is committed."""
    reply: bool


Frame = Logged | Keepalive | Message

_Squeezing = Generator[tuple[bool, int], bytes, bytes]
"""Yields whether to take or skip, and how many bytes; is sent what was taken; returns the smaller message."""


class Frames:
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._squeezing: _Squeezing | None = None
        self._take, self._wanted = True, 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. ProtocolError; wire.WireError."""
        self._buffer += data
        found: list[Frame] = []
        at = 0
        while True:
            if self._squeezing:
                at, body = self._squeeze(self._squeezing, at)
                if body is None:
                    break
                found.append(Logged(body))
            left = len(self._buffer) - at
            if left < HEADER_BYTES:
                break
            kind, length = header(self._buffer, at)
            if length > MAX_FRAME_BYTES:
                if kind != b"d":
                    raise WireError(f"a message {kind!r} of {length} bytes")
                at += HEADER_BYTES
                self._squeezing = _squeezed(length - 4)
                self._take, self._wanted = next(self._squeezing)
                continue
            if left < 1 + length:
                break
            body = bytes(self._buffer[at + HEADER_BYTES : at + 1 + length])
            found.append(_copied(body) if kind == b"d" else Message(kind, body))
            at += 1 + length
        del self._buffer[:at]
        return found

    def _squeeze(self, squeezing: _Squeezing, at: int) -> tuple[int, bytes | None]:
        """Go on as far as the buffer goes: where that is, and the message once it is complete."""
        try:
            while True:
                left = len(self._buffer) - at
                if not self._take:
                    passed = min(left, self._wanted)
                    at, self._wanted = at + passed, self._wanted - passed
                    if self._wanted:
                        return at, None
                    self._take, self._wanted = squeezing.send(b"")
                elif left < self._wanted:
                    return at, None
                else:
                    taken = bytes(self._buffer[at : at + self._wanted])
                    at += self._wanted
                    self._take, self._wanted = squeezing.send(taken)
        except StopIteration as done:
            self._squeezing = None
            body: bytes = done.value
            return at, body


def _copied(body: bytes) -> Frame:
    if body[:1] == b"w" and len(body) > _LOGGED_HEAD:
        return Logged(body[_LOGGED_HEAD:])
    if body[:1] == b"k" and len(body) == 1 + _KEEPALIVE.size:
        end_lsn, _time, reply = _KEEPALIVE.unpack_from(body, 1)
        return Keepalive(end_lsn, bool(reply))
    raise ProtocolError(f"a frame {body[:1]!r} of {len(body)} bytes is none of a stream")


def _squeezed(left: int) -> _Squeezing:
    def room(size: int) -> int:
        nonlocal left
        left -= size
        if left < 0:
            raise ProtocolError("a large frame ends within a value")
        return size

    head = yield True, room(_LOGGED_HEAD + 1)
    kind = head[-1:]
    if head[:1] != b"w":
        raise ProtocolError(f"a large frame {head[:1]!r} is none of a stream")
    if kind not in (b"I", b"U", b"D"):
        yield False, left
        return b"O"
    parts = [kind, (yield True, room(4))]
    kept = 0
    rows = 1
    while rows:
        which = yield True, room(1)
        count_bytes = yield True, room(2)
        parts += which, count_bytes
        rows = int(kind == b"U" and which != b"N")
        for _ in range(int.from_bytes(count_bytes, "big")):
            value_kind = yield True, room(1)
            if value_kind != b"t":
                parts.append(value_kind)
                continue
            length_bytes = yield True, room(4)
            length = room(int.from_bytes(length_bytes, "big"))
            if length > KEPT_VALUE_BYTES or kept + length > KEPT_BYTES:
                yield False, length
                parts.append(_OMITTED)
            else:
                kept += length
                parts += value_kind, length_bytes, (yield True, length)
    if left:
        raise ProtocolError(f"a large frame has {left} bytes after its end")
    return b"".join(parts)


_KEEPALIVE: Final = struct.Struct(">QqB")
_LOGGED_HEAD: Final = 1 + 8 + 8 + 8
_OMITTED: Final = bytes((OMITTED_KIND,))
