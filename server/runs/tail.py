"""Runs as they end, for those who watch: the messages of all recorders, heard over core NATS.

One subscription a process, and only while somebody watches. Nothing waits for a watcher: one that reads too slowly
loses the oldest runs of its queue and is told how many.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from server.errors import ResourceExhausted, Unavailable
from server.events.bus import EventBus
from server.log import logger
from server.runs import stream
from server.runs.reader import Filter
from server.runs.record import RunRecord, decode

log = logger("runs")

QUEUE_RUNS: Final = 1_000
QUEUE_BYTES: Final = 4 * 1024 * 1024
WATCHERS_PER_PROJECT: Final = 20
"""In one process; each costs some µs a run and up to QUEUE_BYTES."""


class TailEnded(Exception):
    """This process is about to end; another one serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tailed:
    """A run that ended; `dropped` before it were left out because the watcher read too slowly."""

    record: RunRecord
    dropped: int


class Watcher:
    """One client's queue."""

    def __init__(self, project_id: str, wanted: Filter, *, most: int, most_bytes: int) -> None:
        self.project_id = project_id
        self._wanted = wanted
        self._most = most
        self._most_bytes = most_bytes
        self._queue: deque[tuple[RunRecord, int]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._changed = asyncio.Event()
        self._closed = False

    async def next(self, timeout_s: float) -> Tailed | None:
        """The next run; None when none ended in time. TailEnded when this process stops serving."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._queue and not self._closed:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return None
        if not self._queue:
            raise TailEnded
        record, size = self._queue.popleft()
        self._bytes -= size
        dropped, self._dropped = self._dropped, 0
        return Tailed(record=record, dropped=dropped)

    def offer(self, record: RunRecord, size_bytes: int) -> None:
        if not self._wanted.admits(record):
            return
        self._queue.append((record, size_bytes))
        self._bytes += size_bytes
        while len(self._queue) > self._most or (self._bytes > self._most_bytes and len(self._queue) > 1):
            self._bytes -= self._queue.popleft()[1]
            self._dropped += 1
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()


class Tail:
    def __init__(self, bus: EventBus, *, queue_runs: int = QUEUE_RUNS, queue_bytes: int = QUEUE_BYTES) -> None:
        self._bus = bus
        self._queue_runs = queue_runs
        self._queue_bytes = queue_bytes
        self._watchers: dict[str, set[Watcher]] = {}
        self._subscription: Subscription | None = None
        self._subscribing = asyncio.Lock()
        self._closed = False
        self._heard: deque[str | None] = deque(maxlen=64)  # a recorder sends a message again that may be lost

    @contextlib.asynccontextmanager
    async def watch(self, project_id: str, wanted: Filter) -> AsyncIterator[Watcher]:
        """Every run of the project that ends from now on and that the filter admits.

        InvalidArgument for a bad filter, ResourceExhausted above WATCHERS_PER_PROJECT, Unavailable while NATS is away.
        """
        wanted = wanted.checked()
        if not self._bus.connected:  # subscribing would not fail: the client does that again when it is connected
            raise _away()
        watching = self._watchers.setdefault(project_id, set())
        if len(watching) >= WATCHERS_PER_PROJECT:
            raise ResourceExhausted(
                f"This server serves {WATCHERS_PER_PROJECT} tails of a project at a time; end one first",
                reason="TOO_MANY_TAILS",
                metadata={"allowed": str(WATCHERS_PER_PROJECT)},
            )
        watcher = Watcher(project_id, wanted, most=self._queue_runs, most_bytes=self._queue_bytes)
        watching.add(watcher)
        try:
            await self._listen()
            if self._closed:
                watcher.close()
            yield watcher
        finally:
            watching.discard(watcher)
            if not watching and self._watchers.get(project_id) is watching:
                del self._watchers[project_id]
            await self._listen()

    async def close(self) -> None:
        """End every tail: what is queued is still read. For the beginning of a shutdown."""
        self._closed = True
        for watching in self._watchers.values():
            for watcher in watching:
                watcher.close()

    async def _listen(self) -> None:
        """Subscribed while there are watchers, and then only."""
        async with self._subscribing:
            try:
                if self._watchers and self._subscription is None:
                    client = self._bus.client
                    self._subscription = await client.subscribe(stream.SUBJECT, cb=self._hear)
                    await client.flush()
                elif not self._watchers and self._subscription is not None:
                    subscription, self._subscription = self._subscription, None
                    await subscription.unsubscribe()
            except stream.AWAY as why:
                if self._watchers:
                    raise _away() from why

    async def _hear(self, message: Msg) -> None:
        name = (message.headers or {}).get("Nats-Msg-Id")
        if name is not None and name in self._heard:
            return
        self._heard.append(name)
        try:
            values = orjson.loads(message.data)
            for value in values:
                if watching := self._watchers.get(value["run"]["project_id"]):
                    self._offer(value, watching)
        except (ValueError, TypeError, KeyError) as why:
            log.error("runs.unreadable", f"A message of the runs stream cannot be shown: {why!r}")

    def _offer(self, value: Any, watching: set[Watcher]) -> None:
        record = decode(value)
        size_bytes = 1_000 + sum(len(line.text) for line in record.logs)
        for watcher in watching:
            watcher.offer(record, size_bytes)


def _away() -> Unavailable:
    return Unavailable(
        "Runs cannot be watched while the event bus is away; try again",
        reason="EVENT_BUS_UNAVAILABLE",
        retry_after_ms=1_000,
    )
