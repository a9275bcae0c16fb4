"""One connection of a tenant's role: one statement at a time, committed only when its caller has seen all of it.

    connect ─▶ idle ── execute ─▶ answered ── commit ─▶ idle          rows were read, nothing is committed yet
                 │                    │
                 │                    └─ abandon ─▶ closed            no Sync was sent, so the server rolls back
                 └─ SqlError: rolled back and reset, idle again

    begin ─▶ execute … execute ── commit, rollback or SqlError ─▶ idle    a block: several statements in a transaction
    ahead ─▶ execute …                                        in a block or not: what goes before in the same round trip

`commit` sends Sync and DISCARD ALL in one write, so whatever a statement did to its session is gone before the next.
Statements go through the extended protocol only: the server itself refuses two in one string.
"""

import asyncio
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from server.postgres import scram, wire

CONNECT_TIMEOUT_S: Final = 5.0
CANCEL_TIMEOUT_S: Final = 2.0
READ_BYTES: Final = 8 * 1024
MAX_HANDSHAKE_BYTES: Final = 64 * 1024

_RESET: Final = wire.SYNC + wire.statement("DISCARD ALL") + wire.SYNC
_BEGIN: Final = wire.statement("BEGIN")
_COMMIT: Final = wire.statement("COMMIT")
_ROLLBACK: Final = wire.statement("ROLLBACK")
_GUARD: Final = wire.statement("SAVEPOINT guard")
_UNGUARD: Final = (wire.statement("ROLLBACK TO guard"), wire.statement("RELEASE guard"))
"""Around an analysis that may fail within a block. Whoever executes what a tenant wrote refuses SAVEPOINT in it."""

_DONE: Final = frozenset((b"C", b"I"))
"""Message types that end one statement's answer: done, empty."""

_STOPPED: Final = frozenset((b"E", b"G", b"H", b"W"))
"""Message types that end the answers: refused, or waiting for COPY."""

OnColumns = Callable[[list[wire.Column]], None]
OnRow = Callable[[list[bytes | None]], None]


class SqlError(Exception):
    """The server refused a statement. `fields` as in the protocol: C SQLSTATE, M message, D, H, P, W."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(fields.get("M", "unknown error"))
        self.fields = fields
        self.sqlstate = fields.get("C", "XX000")


class ConnectionLost(Exception):
    """There is no connection: it could not be made, or it ended. Nothing that was not committed has happened."""


class CopyRefused(Exception):
    """COPY FROM STDIN or TO STDOUT, for which a call has no stream. Abandon the session."""


class Reader(asyncio.StreamReader):
    """Knows that the server has gone also while its last words are unread."""

    ended = False

    def feed_eof(self) -> None:
        self.ended = True
        super().feed_eof()


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens. `host` is a directory (with a leading slash) for a unix socket."""

    host: str
    port: int = 5432
    tls: ssl.SSLContext | None = None
    tls_required: bool = False

    async def open(self) -> tuple[Reader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = Reader(limit=READ_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport: asyncio.Transport
        if self.host.startswith("/"):
            path = f"{self.host}/.s.PGSQL.{self.port}"
            transport, _ = await loop.create_unix_connection(lambda: protocol, path)
        else:
            transport, _ = await loop.create_connection(lambda: protocol, self.host, self.port)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who logs in, with which settings for the session."""

    role: str
    database: str
    password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)


class Session:
    """Made by `connect`. For one task at a time."""

    def __init__(self, address: Address, reader: Reader, writer: asyncio.StreamWriter) -> None:
        self._address = address
        self._reader = reader
        self._writer = writer
        self._inbox = wire.Inbox(MAX_HANDSHAKE_BYTES)
        self._pending: list[wire.Message] = []
        self._cancel_key: tuple[int, int] | None = None
        self._running = 0  # statements the server works on, which have not been answered
        self._block = False
        self._queued: list[bytes] = []  # statements that go before the next one

    @property
    def alive(self) -> bool:
        return not self._writer.is_closing() and not self._reader.ended

    @classmethod
    async def connect(cls, address: Address, login: Login, *, max_message_bytes: int) -> "Session":
        """Logged in and idle. ConnectionLost when there is no server, SqlError when it refuses the role."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                session = cls(address, *await address.open())
                try:
                    await session._secure()
                    await session._log_in(login)
                except BaseException:
                    session.close()
                    raise
        except (OSError, TimeoutError, wire.WireError, scram.ScramError) as why:
            raise ConnectionLost(f"no connection to Postgres: {why}") from why
        session._inbox = wire.Inbox(max_message_bytes)
        return session

    def begin(self, *statements: bytes) -> None:
        """Open a transaction block: the next `execute` or `describe` sends BEGIN and `statements` (`wire.statement`)
        ahead of its own, in one round trip, and drops their answers."""
        self._block = True
        self._queued = [_BEGIN, *statements]

    def ahead(self, *statements: bytes) -> None:
        """The next `execute`, in a block also `describe`, sends these (`wire.statement`) ahead of its own, in its
        transaction and its round trip, and drops their answers."""
        self._queued = [*self._queued, *statements]

    async def describe(self, sql: str, types: Sequence[int]) -> list[int]:
        """The parameters' types as the server infers them where `types` has 0. Nothing is run. SqlError; a block goes
        on after it."""
        analysis = wire.parse(sql, types) + wire.DESCRIBE_STATEMENT + wire.SYNC
        if self._block:
            analysis = b"".join((*self._queued, _GUARD, analysis))
            self._queued = [*_UNGUARD]
        self._writer.write(analysis)
        inferred: list[int] = []
        refused: SqlError | None = None
        while (message := await self._next()).type != b"Z":
            if message.type == b"t":
                inferred = wire.parameter_types(message.body)
            elif message.type == b"E":
                refused = SqlError(wire.fields(message.body))
        if refused:
            raise refused
        return inferred

    async def execute(
        self, sql: str, types: Sequence[int], values: Sequence[bytes | None], on_columns: OnColumns, on_row: OnRow
    ) -> str:
        """Run one statement and return its command tag, e.g. "INSERT 0 1"; `commit` or `abandon` must follow.

        SqlError leaves the session idle, a block rolled back. After any other exception, `on_row`'s included, `abandon`
        it.
        """
        before, self._queued = self._queued, []
        own = wire.parse(sql, types) + wire.bind(values) + wire.DESCRIBE_PORTAL + wire.EXECUTE + wire.FLUSH
        self._writer.write(b"".join((*before, own)))
        self._running = len(before) + 1
        await self._drain()
        while True:
            message = await self._answer()
            if self._running > 1 or (self._running and message.type in _DONE):
                continue  # of what went before
            match message.type:
                case b"D":
                    on_row(wire.row(message.body))
                case b"T":
                    on_columns(wire.columns(message.body))
                case b"C":
                    return message.body.rstrip(b"\0").decode("utf-8", "replace")
                case b"I":  # an empty string
                    return ""
                case b"E":
                    await (self._reset(wire.SYNC, _ROLLBACK) if self._block else self._reset())
                    raise SqlError(wire.fields(message.body))
                case b"G" | b"H" | b"W":
                    raise CopyRefused

    async def copy_both(self, command: str) -> tuple[Reader, asyncio.StreamWriter]:
        """Start a replication command on a session of `replication=database`; the connection is its caller's from then
        on, who closes the session. SqlError when the server refuses it; ConnectionLost."""
        self._writer.write(wire.query(command))
        try:
            while True:  # not a byte more than the answer
                kind, length = wire.header(await self._reader.readexactly(wire.HEADER_BYTES))
                if length > MAX_HANDSHAKE_BYTES:
                    raise wire.WireError(f"a message {kind!r} of {length} bytes")
                body = await self._reader.readexactly(length - 4)
                if kind == b"W":
                    return self._reader, self._writer
                if kind == b"E":
                    raise SqlError(wire.fields(body))
        except (OSError, asyncio.IncompleteReadError, wire.WireError) as why:
            raise ConnectionLost(f"the connection ended: {why}") from why

    async def commit(self) -> None:
        """Commit and leave a clean session. SqlError when a deferred constraint refuses: rolled back, and idle."""
        refused = await (self._reset(_COMMIT) if self._block else self._reset())
        if refused:
            raise refused

    async def rollback(self) -> None:
        """Undo the block and leave a clean session."""
        await self._reset(_ROLLBACK)

    async def abandon(self) -> None:
        """Stop the running statement on the server, roll it back and close. Never raises, takes at most 4 s."""
        if self._running:
            with suppress(ConnectionLost, OSError, TimeoutError, wire.WireError):
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await self._cancel()
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    while self._running:
                        await self._answer()
        self._writer.transport.abort()

    def close(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(wire.TERMINATE)
            self._writer.close()

    async def wait_closed(self, within_s: float | None = None) -> None:
        """After `close` or `abandon`: until the socket is gone. After `within_s` it is, though the server has not got
        what was to be sent: its machine may be gone."""
        try:
            async with asyncio.timeout(within_s):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()
        except OSError:
            pass

    async def _secure(self) -> None:
        if self._address.tls is None:
            return
        self._writer.write(wire.SSL_REQUEST)
        if await self._reader.readexactly(1) == b"S":
            await self._writer.start_tls(self._address.tls, server_hostname=self._address.host)
        elif self._address.tls_required:
            raise ConnectionLost("the server does not offer TLS, which sslmode requires")

    async def _log_in(self, login: Login) -> None:
        exchange = scram.Scram(login.password, secrets.token_urlsafe(18))
        self._writer.write(wire.startup({"user": login.role, "database": login.database, **login.settings}))
        proven = True
        while (message := await self._next()).type != b"Z":
            if message.type == b"E":
                raise SqlError(wire.fields(message.body))
            if message.type == b"K":
                self._cancel_key = (int.from_bytes(message.body[:4], "big"), int.from_bytes(message.body[4:8], "big"))
            if message.type != b"R":
                continue
            match int.from_bytes(message.body[:4], "big"):
                case 0:
                    if not proven:
                        raise scram.ScramError("the server skipped the proof of the password")
                case 10 if scram.MECHANISM.encode() in message.body[4:].split(b"\0"):
                    proven = False
                    self._writer.write(wire.sasl_initial(scram.MECHANISM, exchange.first))
                case 11:
                    self._writer.write(wire.password(exchange.answer(message.body[4:])))
                case 12:
                    exchange.verify(message.body[4:])
                    proven = True
                case other:
                    raise wire.WireError(
                        f"authentication method {other}; only peer, trust and SCRAM-SHA-256 are spoken"
                    )

    async def _reset(self, *ending: bytes) -> SqlError | None:
        """`ending`: what ends the block, which is not sent when the block was never opened."""
        if self._queued and self._queued[0] is _BEGIN:
            ending = ()
        self._block, self._queued = False, []
        self._writer.write(b"".join((*ending, _RESET)))
        refused: SqlError | None = None
        for part in (*("statement" for each in ending if each is wire.SYNC), "statement", "reset"):
            while (message := await self._next()).type != b"Z":
                if message.type != b"E":
                    continue
                if part == "reset":
                    raise ConnectionLost("the session could not be reset")
                refused = SqlError(wire.fields(message.body))
        return refused

    async def _cancel(self) -> None:
        if self._cancel_key is None:
            return
        reader, writer = await self._address.open()
        try:
            writer.write(wire.cancel_request(*self._cancel_key))
            await reader.read()  # the server closes once it has passed the signal on
        finally:
            writer.close()

    async def _answer(self) -> wire.Message:
        """The next message while statements are to be answered; counts those that are."""
        message = await self._next()
        if message.type in _DONE:
            self._running -= 1
        elif message.type in _STOPPED:
            self._running = 0
        return message

    async def _next(self) -> wire.Message:
        while not self._pending:
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError as why:
                raise ConnectionLost(f"the connection ended: {why}") from why
            if not data:
                raise ConnectionLost("the server closed the connection")
            self._pending = self._inbox.feed(data)
            self._pending.reverse()
            if len(data) == READ_BYTES:
                await asyncio.sleep(0)  # a long result must not keep the loop from others
        return self._pending.pop()

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as why:
            raise ConnectionLost(f"the connection ended: {why}") from why
