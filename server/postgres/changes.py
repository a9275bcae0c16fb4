"""Which caches are stale: announced with the commit that made them so, heard by every process of the cluster.

    writer    announce(conn, topic, key) in its transaction → COMMIT → fence()
    listener  LISTEN → on_change(key) per announcement; on_gap() when some may have been missed

Two promises, both from one lease. A listener holds a lease of LEASE_S that it renews by a round trip on the listening
connection: Postgres sends what was announced before the answer, so a renewal proves that nothing older is missing.
Without the lease `connected` is False and caches read through.

    1. A cache asked while `connected` is at most LEASE_S behind any commit, whatever breaks.
    2. When `fence()` returns, every process knows what was committed before: it said so, or its lease has run out.
"""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import psycopg
from psycopg import AsyncConnection, sql

from server.clock import Clock, SystemClock
from server.log import logger
from server.postgres.control import Connection
from server.tasks import end_task

log = logger("changes")

LEASE_S: Final = 1.0
RENEW_EVERY_S: Final = 0.25
ROUND_TRIP_S: Final = 0.7
"""A connection that takes longer to answer is taken for dead."""

CONNECT_S: Final = 5.0
BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Waits between attempts to reconnect; the last one repeats."""

NEVER: Final = float("-inf")

_CHANNEL: Final = "atlas_changes"
_LISTENER: Final = "atlas-listener:"
_FENCE: Final = "fence"
_KEEPALIVE: Final = "-c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=3"
"""So that Postgres, too, forgets a listener whose machine is gone, and fences stop waiting for it."""


@dataclass(frozen=True, slots=True)
class _Subscriber:
    on_change: Callable[[str], None]
    on_gap: Callable[[], None]


@dataclass(slots=True)
class _Fence:
    """The listeners that have not yet said that they passed it; None until it is known who listens."""

    waiting: set[str] | None = None
    passed: set[str] = field(default_factory=set)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def expect(self, listeners: set[str]) -> None:
        self.waiting = listeners
        self.note(None)

    def note(self, listener: str | None) -> None:
        if listener is not None:
            self.passed.add(listener)
        if self.waiting is not None and self.waiting <= self.passed:
            self.done.set()


class Changes:
    def __init__(self, url: str, *, connect_s: float = CONNECT_S, clock: Clock | None = None) -> None:
        """`url` is the control database's, past any pooler that shares sessions: LISTEN needs its own."""
        self._connect_s = connect_s
        self._url = url
        self._clock = clock or SystemClock()
        self._id = uuid.uuid4().hex
        self._subscribers: dict[str, list[_Subscriber]] = {}
        self._fences: dict[str, _Fence] = {}
        self._leased_at_s = NEVER
        self._listening = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Changes {'connected' if self.connected else 'not connected'}>"

    def subscribe(self, topic: str, on_change: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        """Call `on_change(key)` for every announcement of `topic`, `on_gap()` when some may have been missed.

        Both run on the event loop and must not block. Subscribe before `start`.
        """
        if topic == _FENCE or ":" in topic:
            raise ValueError(f"{topic!r} cannot be a topic")
        self._subscribers.setdefault(topic, []).append(_Subscriber(on_change, on_gap))

    async def start(self) -> None:
        """Listening, or psycopg.OperationalError when the database cannot be reached in time."""
        self._task = asyncio.create_task(self._listen_for_ever(), name="changes")
        try:
            async with asyncio.timeout(self._connect_s):
                await self._listening.wait()
        except TimeoutError:
            await self.close()
            raise psycopg.OperationalError("the control database cannot be reached") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening; `connected` is False from here on."""
        self._leased_at_s = NEVER
        if self._task is not None:
            await end_task(self._task)
            self._task = None

    @property
    def connected(self) -> bool:
        """Whether everything committed more than LEASE_S ago has been heard. Never trust a cache while it is False."""
        return self._clock.monotonic_s() - self._leased_at_s < LEASE_S

    async def announce(self, conn: Connection, topic: str, key: str) -> None:
        """Tell every process, at the moment `conn`'s transaction commits and not if it rolls back."""
        await conn.execute("SELECT pg_notify(%s, %s)", [_CHANNEL, f"{topic}:{key}"])

    async def fence(self) -> None:
        """Return when every process knows all that was committed before the call; after LEASE_S at the latest."""
        deadline_s = self._clock.monotonic_s() + LEASE_S
        token = uuid.uuid4().hex
        fence = self._fences[token] = _Fence()
        try:
            fence.expect(await self._ask_listeners(token))
            async with asyncio.timeout(deadline_s - self._clock.monotonic_s()):
                await fence.done.wait()
        except (psycopg.Error, TimeoutError) as why:
            log.warning("changes.fence", f"Not every process answered a fence; waiting for leases to run out: {why!r}")
            await asyncio.sleep(deadline_s - self._clock.monotonic_s())
        finally:
            del self._fences[token]

    async def _ask_listeners(self, token: str) -> set[str]:
        """Send a fence to every listener there is, and name them."""
        async with asyncio.timeout(LEASE_S):
            conn = await self._connect("atlas-fence")
        async with conn:
            with _patience(conn):
                cursor = await conn.execute(
                    "SELECT application_name FROM pg_stat_activity"
                    " WHERE datname = current_database() AND starts_with(application_name, %s)",
                    [_LISTENER],
                )
                listeners = {str(name).removeprefix(_LISTENER) for (name,) in await cursor.fetchall()}
                await conn.execute("SELECT pg_notify(%s, %s)", [_CHANNEL, f"{_FENCE}:{token}:{self._id}"])
        return listeners

    async def _connect(self, name: str) -> Connection:
        return await AsyncConnection.connect(
            self._url, autocommit=True, application_name=name, connect_timeout=int(CONNECT_S), options=_KEEPALIVE
        )

    async def _listen_for_ever(self) -> None:
        attempt = 0
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError) as why:
                log.warning("changes.lost", f"Not listening for changes, caches are off until it works again: {why}")
            except Exception:
                log.exception("changes.fault", "A change could not be applied; caches start over")
            attempt = 0 if self._leased_at_s > NEVER else attempt + 1
            self._leased_at_s = NEVER
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])

    async def _listen(self) -> None:
        """One connection's life: until it breaks."""
        async with await self._connect("atlas-starting") as conn:
            with _patience(conn):
                for channel in (_CHANNEL, _answers_to(self._id)):
                    await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                await conn.execute("SELECT set_config('application_name', %s, false)", [_LISTENER + self._id])
            for subscribers in self._subscribers.values():
                for subscriber in subscribers:
                    subscriber.on_gap()
            while True:
                await self._renew(conn)
                await self._hear(conn, RENEW_EVERY_S)

    async def _renew(self, conn: Connection) -> None:
        if (asked_at_s := self._clock.monotonic_s()) < self._leased_at_s + RENEW_EVERY_S:
            return
        with _patience(conn):
            await conn.execute("SELECT 1")
        await self._hear(conn, 0)
        self._leased_at_s = asked_at_s
        self._listening.set()

    async def _hear(self, conn: Connection, timeout_s: float) -> None:
        """Apply what has been announced; wait at most `timeout_s` for something."""
        questions = []
        async for notice in conn.notifies(timeout=timeout_s, stop_after=1):
            if notice.channel == _CHANNEL and not notice.payload.startswith(f"{_FENCE}:"):
                topic, _, key = notice.payload.partition(":")
                for subscriber in self._subscribers.get(topic, ()):
                    subscriber.on_change(key)
            elif notice.channel == _CHANNEL:
                questions.append(notice.payload.split(":"))
            else:
                token, _, listener = notice.payload.partition(":")
                if token in self._fences:
                    self._fences[token].note(listener)
        with _patience(conn):
            for _, token, asker in questions:
                await conn.execute("SELECT pg_notify(%s, %s)", [_answers_to(asker), f"{token}:{self._id}"])


def _answers_to(listener: str) -> str:
    """The channel on which a listener hears answers to its fences."""
    return f"atlas_fence_{listener}"


@contextlib.contextmanager
def _patience(conn: Connection) -> Iterator[None]:
    """Cut a connection that does not answer within ROUND_TRIP_S: what waits for it fails with psycopg.OperationalError.

    Cancelling would be slower: psycopg first asks the server, which may be gone, to cancel the query.
    """
    watchdog = asyncio.get_running_loop().call_later(ROUND_TRIP_S, _cut, conn)
    try:
        yield
    finally:
        watchdog.cancel()


def _cut(conn: Connection) -> None:
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as link:
        link.shutdown(socket.SHUT_RDWR)
