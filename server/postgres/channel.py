"""One connection to a Postgres, from its opening on: logged in, then bytes out and whole messages in."""

import asyncio
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from server.postgres import scram, wire

CONNECT_TIMEOUT_S: Final = 5.0
READ_BYTES: Final = 8 * 1024
MAX_HANDSHAKE_BYTES: Final = 64 * 1024


class SqlError(Exception):
    """The server refused a statement. `fields` as in the protocol: C SQLSTATE, M message, D, H, P, W."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(fields.get("M", "unknown error"))
        self.fields = fields
        self.sqlstate = fields.get("C", "XX000")


class ConnectionLost(Exception):
    """There is no connection: it could not be made, or it ended. Nothing that was not committed has happened."""


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


class Channel:
    """Made by `connect`. For one task at a time."""

    def __init__(self, address: Address, reader: Reader, writer: asyncio.StreamWriter) -> None:
        self._address = address
        self._reader = reader
        self._writer = writer
        self._inbox = wire.Inbox(MAX_HANDSHAKE_BYTES)
        self._pending: list[wire.Message] = []
        self._cancel_key: tuple[int, int] | None = None

    @property
    def alive(self) -> bool:
        return not self._writer.is_closing() and not self._reader.ended

    @classmethod
    async def connect(cls, address: Address, login: Login, *, max_message_bytes: int) -> "Channel":
        """Logged in. ConnectionLost when there is no server, SqlError when it refuses the role."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                channel = cls(address, *await address.open())
                try:
                    await channel._secure()
                    await channel._log_in(login)
                except BaseException:
                    channel.close()
                    raise
        except (OSError, TimeoutError, wire.WireError, scram.ScramError) as why:
            raise ConnectionLost(f"no connection to Postgres: {why}") from why
        channel._inbox = wire.Inbox(max_message_bytes)
        return channel

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as why:
            raise ConnectionLost(f"the connection ended: {why}") from why

    async def next(self) -> wire.Message:
        """The next message. ConnectionLost."""
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

    async def copy_both(self, command: str) -> tuple[Reader, asyncio.StreamWriter]:
        """Start a replication command on a connection of `replication=database`, which is the caller's from then on,
        who closes the channel. SqlError when the server refuses it; ConnectionLost."""
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

    async def cancel(self) -> None:
        """Ask the server to stop what runs, over a connection of its own."""
        if self._cancel_key is None:
            return
        reader, writer = await self._address.open()
        try:
            writer.write(wire.cancel_request(*self._cancel_key))
            await reader.read()  # the server closes once it has passed the signal on
        finally:
            writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()

    def close(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(wire.TERMINATE)
            self._writer.close()

    async def wait_closed(self, within_s: float | None = None) -> None:
        """After `close` or `abort`: until the socket is gone. After `within_s` it is, though the server has not got
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
        while (message := await self.next()).type != b"Z":
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
