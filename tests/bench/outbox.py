"""Committed events on their way into the stream, beside events published at once; of one project, in one process.

The clock begins just before COMMIT is sent; an event is there when a subscriber hears of it. What waits is there before
the relays start, and all stored when the clock ends.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import orjson

from engines.contract import Limits
from server.events import outbox, run_outbox, stream
from server.events.envelope import Event
from server.events.json_text import read
from server.events.publisher import Publisher
from server.host.api import InvocationHost
from server.postgres.control import transaction
from tests.bench import worker
from tests.bench.rows import Row, percentile
from tests.bench.worker import Worker
from tests.fix_effects import ask, begin
from tests.fix_runs import eventually

TITLE: Final = "Outboxes, in one worker process"
COMMITS: Final = 200
COLD: Final = 20
PAUSE_S: Final = 0.005
WAITING: Final = 5_000
BATCH: Final = 100
LIMITS: Final = Limits(wall_ms=60_000, cpu_ms=1_000, memory_bytes=1, fetch_calls=0)
DATA: Final = {"id": 1, "amount": 120.5, "note": "x" * 60}


async def measure() -> list[Row]:
    """About 15 s."""
    async with worker.running() as made, AsyncExitStack() as stack:
        site = _Site(made)
        started = made.started
        functions = run_outbox.Relay(started.tenants, started.bus, site.publisher)
        storage = outbox.Relay(started.pool, started.changes, site.publisher)
        for relay in (functions, storage):
            stack.push_async_callback(relay.close)
        direct_per_s = await site.per_s(site.publish_batch)
        await site.fill(site.commit_batch)
        functions_per_s = await site.drained_per_s(functions.start)
        await site.fill(site.add_batch)
        storage_per_s = await site.drained_per_s(storage.start)
        await site.listen()
        direct_ms = await site.each_ms(site.publish_one)
        functions_ms = await site.each_ms(site.commit_one)
        storage_ms = await site.each_ms(site.add_one)
    return [
        *(
            Row(f"{name}: COMMIT to event in the stream, p{part}", percentile(lags_ms, part), "ms", "", beside_ms)
            for part in (50, 99)
            for beside_ms in (percentile(direct_ms, part),)
            for name, lags_ms in (("functions", functions_ms), ("storage", storage_ms))
        ),
        Row("functions: events that wait, published", functions_per_s, "/s", baseline=direct_per_s),
        Row("storage: events that wait, published", storage_per_s, "/s", baseline=direct_per_s),
    ]


class _Site:
    def __init__(self, made: Worker) -> None:
        self._made = made
        self.publisher = Publisher(made.started.bus, made.started.settings)
        self._heard_s: asyncio.Queue[float] = asyncio.Queue()

    def event(self) -> Event:
        return Event(
            id=str(uuid4()),
            type="bench",
            project_id=self._made.project.id,
            time=datetime.now(UTC),
            source="bench",
            data=read(orjson.dumps(DATA)),
        )

    def host(self) -> InvocationHost:
        """Of a run: each may publish so many events."""
        return self._made.started.hosts.for_invocation(self._made.project.id, LIMITS)

    async def publish_batch(self) -> None:
        await self.publisher.publish([self.event() for _ in range(BATCH)])

    async def add_batch(self, count: int = BATCH) -> float:
        """As storage does; when COMMIT was sent."""
        async with transaction(self._made.started.pool) as conn:
            await self._made.started.outbox.add(conn, [self.event() for _ in range(count)])
            return time.monotonic()

    async def commit_batch(self, count: int = BATCH) -> float:
        """As a function does; when COMMIT was sent."""
        host = self.host()
        held = await begin(host)
        for _ in range(count):
            await ask(host, "events.publish", "bench", DATA, None, 1)
        committing_s = time.monotonic()
        await ask(host, "tx.commit", 1)
        await held
        return committing_s

    async def publish_one(self) -> float:
        event, began_s = self.event(), time.monotonic()
        await self.publisher.publish([event])
        return began_s

    async def commit_one(self) -> float:
        return await self.commit_batch(1)

    async def add_one(self) -> float:
        return await self.add_batch(1)

    async def per_s(self, batch: Callable[[], Awaitable[object]]) -> float:
        began_s = time.monotonic()
        await self.fill(batch)
        return WAITING / (time.monotonic() - began_s)

    async def fill(self, batch: Callable[[], Awaitable[object]]) -> None:
        for _ in range(WAITING // BATCH):
            await batch()

    async def drained_per_s(self, start: Callable[[], Awaitable[None]]) -> float:
        """Of WAITING events that are there already, from the start of a relay."""
        before = await self._stored()

        async def all_there() -> bool:
            return await self._stored() >= before + WAITING

        began_s = time.monotonic()
        await start()
        await eventually(all_there, within_s=60)
        return WAITING / (time.monotonic() - began_s)

    async def _stored(self) -> int:
        return (await self._made.started.bus.jetstream.stream_info(stream.NAME)).state.messages

    async def listen(self) -> None:
        async def hear(_: object) -> None:
            self._heard_s.put_nowait(time.monotonic())

        await self._made.started.bus.client.subscribe(f"{stream.PREFIX}bench", cb=hear)

    async def each_ms(self, commit: Callable[[], Awaitable[float]]) -> list[float]:
        lags_ms = []
        for _ in range(COMMITS):
            began_s = await commit()
            lags_ms.append((await self._heard_s.get() - began_s) * 1000)
            await asyncio.sleep(PAUSE_S)
        return lags_ms[COLD:]
