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
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from server.postgres import wire
from server.postgres.channel import Address, Channel, ConnectionLost, Login, SqlError

CANCEL_TIMEOUT_S: Final = 2.0

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


class CopyRefused(Exception):
    """COPY FROM STDIN or TO STDOUT, for which a call has no stream. Abandon the session."""


class Session:
    """Made by `connect`. For one task at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._running = 0  # statements the server works on, which have not been answered
        self._block = False
        self._queued: list[bytes] = []  # statements that go before the next one

    @property
    def alive(self) -> bool:
        return self._channel.alive

    @classmethod
    async def connect(cls, address: Address, login: Login, *, max_message_bytes: int) -> "Session":
        """Logged in and idle. ConnectionLost when there is no server, SqlError when it refuses the role."""
        return cls(await Channel.connect(address, login, max_message_bytes=max_message_bytes))

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
        self._channel.write(analysis)
        inferred: list[int] = []
        refused: SqlError | None = None
        while (message := await self._channel.next()).type != b"Z":
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
        self._channel.write(b"".join((*before, own)))
        self._running = len(before) + 1
        await self._channel.drain()
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
                    await self._channel.cancel()
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    while self._running:
                        await self._answer()
        self._channel.abort()

    def close(self) -> None:
        self._channel.close()

    async def wait_closed(self, within_s: float | None = None) -> None:
        """After `close` or `abandon`, as `Channel.wait_closed`."""
        await self._channel.wait_closed(within_s)

    async def _reset(self, *ending: bytes) -> SqlError | None:
        """`ending`: what ends the block, which is not sent when the block was never opened."""
        if self._queued and self._queued[0] is _BEGIN:
            ending = ()
        self._block, self._queued = False, []
        self._channel.write(b"".join((*ending, _RESET)))
        refused: SqlError | None = None
        for part in (*("statement" for each in ending if each is wire.SYNC), "statement", "reset"):
            while (message := await self._channel.next()).type != b"Z":
                if message.type != b"E":
                    continue
                if part == "reset":
                    raise ConnectionLost("the session could not be reset")
                refused = SqlError(wire.fields(message.body))
        return refused

    async def _answer(self) -> wire.Message:
        """The next message while statements are to be answered; counts those that are."""
        message = await self._channel.next()
        if message.type in _DONE:
            self._running -= 1
        elif message.type in _STOPPED:
            self._running = 0
        return message
