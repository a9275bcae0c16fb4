"""Runs on a real Postgres and a real NATS: their transactions, the outbox, and what of it comes into the stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from psycopg import AsyncConnection

from engines.contract import Limits
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import Event
from server.events.publisher import Publisher
from server.host.api import HostApi, InvocationHost
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.host.publishing import Publishing
from server.postgres.tenants import Tenants
from server.settings import Settings

SETTINGS = Settings(events_keep_hours=1, events_keep_mb=16)
LIMITS = Limits(wall_ms=20_000, cpu_ms=1_000, memory_bytes=1, fetch_calls=2)


@pytest.fixture
async def event_bus(nats_url: str) -> AsyncIterator[EventBus]:
    """With an empty stream of events, and none after it."""
    bus = EventBus(nats_url)
    await bus.start()
    await _without_stream(bus)
    await stream.ensure(bus, SETTINGS)
    yield bus
    await _without_stream(bus)
    await bus.close()


async def _without_stream(bus: EventBus) -> None:
    for info in await bus.jetstream.streams_info():
        if info.config.name == stream.NAME:
            await bus.jetstream.delete_stream(stream.NAME)


@pytest.fixture
async def hosts(database: Database, valkey_url: str, event_bus: EventBus) -> AsyncIterator[HostApi]:
    publishing = Publishing(Publisher(event_bus, SETTINGS), event_bus)
    found = HostApi(database, KeyValue(valkey_url), Fetcher(), publishing=publishing)
    yield found
    await found.keyvalue.close()
    await found.fetcher.close()


@pytest.fixture
async def admin(tenants: Tenants) -> AsyncIterator[AsyncConnection]:
    async with tenants.admin() as connection:
        await connection.execute("DELETE FROM atlas_kept.outbox")
        yield connection


async def ask(host: InvocationHost, op: str, *args: object) -> Any:
    return orjson.loads(await host.call(op, orjson.dumps(args)))


async def begin(host: InvocationHost, number: int = 1, once: str | None = None) -> asyncio.Task[Any]:
    """The call that holds the transaction, which is open."""
    held = asyncio.create_task(ask(host, "tx.open", number, {"exactly_once": once}))
    await asyncio.sleep(0)
    assert await ask(host, "tx.begin", number) is None
    return held


async def stored(bus: EventBus) -> list[Event]:
    """All that is in the stream, in its order."""
    state = (await bus.jetstream.stream_info(stream.NAME)).state
    if not state.messages:
        return []
    subscription = await bus.jetstream.pull_subscribe(f"{stream.PREFIX}>", stream=stream.NAME)
    try:
        found: list[Event] = []
        while len(found) < state.messages:
            for message in await subscription.fetch(500, timeout=5):
                await message.ack()
                found.append(stream.event_of(message.subject, message.data))
        return found
    finally:
        await subscription.unsubscribe()


async def waiting(admin: AsyncConnection) -> int:
    """Events in the outbox."""
    row = await (await admin.execute("SELECT count(*) FROM atlas_kept.outbox WHERE refused IS NULL")).fetchone()
    assert row is not None
    return int(row[0])


class Decoded:
    """What a logical replication slot of this database sees, as test_decoding writes it."""

    def __init__(self, admin: AsyncConnection) -> None:
        self._admin = admin

    async def lines(self) -> list[str]:
        # what is committed is decoded once it is on disk, and these servers are in no hurry
        await self._admin.execute("SELECT pg_logical_emit_message(false, 'flush', '', true)")
        cursor = await self._admin.execute(
            "SELECT data FROM pg_logical_slot_get_changes('effects', NULL, NULL, 'include-xids', 'off')"
        )
        return [line for (line,) in await cursor.fetchall() if "prefix: flush," not in line]


@pytest.fixture
async def decoded(admin: AsyncConnection) -> AsyncIterator[Decoded]:
    await admin.execute("SELECT pg_create_logical_replication_slot('effects', 'test_decoding')")
    try:
        yield Decoded(admin)
    finally:
        await admin.execute("SELECT pg_drop_replication_slot('effects')")
