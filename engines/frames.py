"""Frames between a supervisor and its sandbox child over one stream socket. Sans-IO: bytes in, frames out.

    offset  0     4     5     6      10     14
            len   type  zero  inv    call   payload[len]          little-endian: u32 u8 u8 u32 u32

`len` counts the payload only. `inv` numbers the invocation on this child, from 1; `call` a host call within it.

    direction  type      inv  call  payload
    S → C      BIND      0    0     u32 n, JSON[n] {"memory_bytes","log_bytes","result_bytes","isolation"}, code
    S → C      INVOKE    i    0     u32 n, JSON[n] {"cpu_ms","wall_ms","fuel","kind"}, u32 m, ctx JSON[m], input
    S → C      HOSTRES   i    c     u8 ok (1 | 0), JSON text: the value, or {"code","message"}
    S → C      CANCEL    i    0     empty: stop waiting for host calls and answer ERROR cancelled
    C → S      READY     0    0     JSON {"memory_bytes", "boot_us"}: bound and loaded; or ERROR with inv 0
    C → S      HOSTCALL  i    0     JSON [[call, op, argsJsonText], …]: all the calls of one turn
    C → S      RESULT    i    0     u32 n, JSON[n] meta, value JSON text or Response body
    C → S      ERROR     i    0     JSON meta + {"outcome", "error": {"name","message","stack","code"?}, "used"?}

An INVOKE may be sent before the one before it is answered, to children that take it (engines/kind.py): they run in
the order of `inv`. INVOKE's kind, of the input, is "json", "text" or "bytes"; meta is {"wall_us","cpu_us",
"memory_bytes","fuel"?,"kind":"json|response","status"?,"headers"?,"logs":[[level,text,at_us],…],"truncated"}. The child
is hostile: whoever reads these frames checks every field, and a frame that breaks a rule of this table raises
FrameError, after which the only right thing to do is to kill the child.

The child side is a program of its own (engines/quickjs/child.py) and reads the same table; both import this module,
which therefore imports nothing but `struct` and `enum`. What the payloads mean is for engines/messages.py (supervisor)
and the child program to say.
"""

import enum
import struct

HEADER = struct.Struct("<IBBII")
LENGTH = struct.Struct("<I")
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
MAX_CALLS_IN_FLIGHT = 64


class Type(enum.IntEnum):
    BIND = 1
    INVOKE = 2
    HOSTRES = 3
    CANCEL = 4
    READY = 16
    HOSTCALL = 17
    RESULT = 18
    ERROR = 19


class FrameError(Exception):
    """The other side broke the protocol. The connection is of no further use; end the process behind it."""


def encode(kind: Type, inv: int = 0, call: int = 0, payload: bytes = b"") -> bytes:
    """One whole frame. Raises ValueError when the payload is larger than MAX_PAYLOAD_BYTES."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes; {MAX_PAYLOAD_BYTES} is the most")
    return HEADER.pack(len(payload), kind, 0, inv, call) + payload


Frame = tuple[Type, int, int, bytes]
"""Type, inv, call, payload."""

_TYPES = {int(kind): kind for kind in Type}


class Reader:
    """Turns a byte stream, cut anywhere, into frames. The same bytes give the same frames whatever the cuts.

    It holds one incomplete frame at most: HEADER.size + MAX_PAYLOAD_BYTES and what one `feed` brought. After a
    FrameError it stays broken and raises on every later feed.
    """

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEADER.size
        self._broken = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by `data`, in order. Raises FrameError at the first header that breaks a rule."""
        if self._broken:
            raise FrameError("the stream is already broken")
        if self._have:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._have = 0

        frames: list[Frame] = []
        start, end = 0, len(data)
        need = HEADER.size
        while end - start >= HEADER.size:
            length, number, zero, inv, call = HEADER.unpack_from(data, start)
            kind = _TYPES.get(number)
            if kind is None or zero or length > MAX_PAYLOAD_BYTES:
                self._broken = True
                raise FrameError(f"a header of type {number}, flags {zero}, {length} bytes")
            need = HEADER.size + length
            if end - start < need:
                break
            frames.append((kind, inv, call, data[start + HEADER.size : start + need]))
            start += need
            need = HEADER.size
        if start < end:
            self._chunks.append(data[start:])
            self._have = end - start
            self._need = need
        return frames
