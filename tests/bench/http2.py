"""A load generator for one request, over and over, on one HTTP/2 connection.

gRPC's own Python client costs as much CPU as the server under test, so this one makes the frames of a request once and
reads of an answer only what says that it is one: `:status 200` in the first frame, then data. About 15 µs a request.
"""

import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME: Final = struct.Struct(">IBI")  # length << 8 | type, flags, stream
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
INITIAL_WINDOW_SIZE: Final = 4
LARGEST_WINDOW: Final = 2**31 - 1

STATUS_200: Final = 0x88  # HPACK, the static table's entry
TABLE_SIZE_UPDATE: Final = range(0x20, 0x40)
FIRST_DYNAMIC: Final = 62
LITERAL_INDEXED, INDEXED = 0x40, 0x80
POST_HTTP: Final = b"\x83\x86"  # :method POST, :scheme http

TIMEOUT_S: Final = 10.0

Address = str | tuple[str, int]
"""Path of a unix socket, or host and port."""


class BadAnswer(Exception):
    """The server refused, or said what no server in order says."""


@dataclass(frozen=True, slots=True)
class Post:
    """What to send: header names in lower case, each at most 126 bytes, as is each value."""

    address: Address
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """What came back: the latency of every request, how long all took, and the last answer's data."""

    latencies_ms: list[float]
    seconds: float
    last: bytes

    @property
    def per_s(self) -> float:
        return len(self.latencies_ms) / self.seconds


def drive(post: Post, *, in_flight: int, seconds: float) -> Load:
    """Keep `in_flight` requests under way for `seconds`, then wait for those that are. BadAnswer when one fails.

    All bodies in flight together have to fit into HTTP/2's first window, 64 KiB.
    """
    with _connect(post.address) as connection:
        return _Client(connection, post).run(in_flight, seconds)


def _connect(address: Address) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    connection.settimeout(TIMEOUT_S)
    connection.connect(address)
    if not isinstance(address, str):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
    window = struct.pack(">I", LARGEST_WINDOW - 65_535)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window))
    return connection


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


class _Client:
    def __init__(self, connection: socket.socket, post: Post) -> None:
        self._connection = connection
        headers = ((":path", post.path), (":authority", "bench"), *post.headers)
        # The first request enters its headers into the connection's table, whose newest has the lowest number.
        self._first = POST_HTTP + b"".join(_literal(name, value) for name, value in headers)
        self._later = POST_HTTP + bytes(INDEXED | (FIRST_DYNAMIC + i) for i in reversed(range(len(headers))))
        self._body = post.body
        self._stream = -1
        self._sent_s: dict[int, float] = {}
        self._answers: dict[int, bytes] = {}
        self._latencies_ms: list[float] = []
        self._last = b""

    def run(self, in_flight: int, seconds: float) -> Load:
        began_s = time.perf_counter()
        ends_s = began_s + seconds
        self._connection.sendall(b"".join(self._next() for _ in range(in_flight)))
        rest = b""
        while self._sent_s:
            received = self._connection.recv(1 << 18)
            if not received:
                raise BadAnswer("the connection was closed")
            reply, rest = self._read(rest + received, time.perf_counter() < ends_s)
            if reply:
                self._connection.sendall(b"".join(reply))
        return Load(self._latencies_ms, time.perf_counter() - began_s, self._last)

    def _next(self) -> bytes:
        """The frames of one more request."""
        block = self._first if self._stream < 0 else self._later
        self._stream += 2
        self._sent_s[self._stream] = time.perf_counter()
        return frame(HEADERS, END_HEADERS, self._stream, block) + frame(DATA, END_STREAM, self._stream, self._body)

    def _read(self, data: bytes, go_on: bool) -> tuple[list[bytes], bytes]:
        """What to answer, and the incomplete frame at the end."""
        reply: list[bytes] = []
        start, end = 0, len(data)
        while end - start >= FRAME.size:
            length_and_kind, flags, stream = FRAME.unpack_from(data, start)
            body = start + FRAME.size
            if (stop := body + (length_and_kind >> 8)) > end:
                break
            kind = length_and_kind & 255
            if kind in (DATA, HEADERS):
                if kind == DATA:
                    self._answers[stream] += data[body:stop]
                elif stream not in self._answers:
                    _require_200(data[body:stop], flags)
                    self._answers[stream] = b""
                if flags & END_STREAM:
                    self._finish(stream)
                    if go_on:
                        reply.append(self._next())
            elif kind in (SETTINGS, PING) and not flags & ACK:
                reply.append(frame(kind, ACK, 0, data[body:stop] if kind == PING else b""))
            elif kind in (RST_STREAM, GOAWAY):
                raise BadAnswer(f"a frame of type {kind}: {data[body:stop]!r}")
            start = stop
        return reply, data[start:]

    def _finish(self, stream: int) -> None:
        self._latencies_ms.append((time.perf_counter() - self._sent_s.pop(stream)) * 1000)
        self._last = self._answers.pop(stream)
        if not self._last:
            raise BadAnswer("an answer without data, as gRPC's errors are")


def _literal(name: str, value: str) -> bytes:
    return b"".join((bytes((LITERAL_INDEXED,)), *(bytes((len(text),)) + text for text in _encoded((name, value)))))


def _encoded(texts: Iterable[str]) -> Iterable[bytes]:
    for text in texts:
        raw = text.encode()
        assert len(raw) < 127, text
        yield raw


def _require_200(block: bytes, flags: int) -> None:
    start = (1 if flags & PADDED else 0) + (5 if flags & PRIORITY else 0)
    while block[start] in TABLE_SIZE_UPDATE:
        start += (
            1 if block[start] != 0x3F else 1 + next(i for i, byte in enumerate(block[start + 1 :], 1) if byte < 128)
        )
    if block[start] != STATUS_200:
        raise BadAnswer(f"not status 200: {block[:200]!r}")
