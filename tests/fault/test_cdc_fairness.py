"""Tenants that write faster than their changes are published, against the slot that all of them share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import psycopg
from psycopg import AsyncConnection

from server.cdc.relay import Relay
from server.cdc.slot import standing as standing_of
from server.events.bus import EventBus
from server.postgres.tenants import Tenants, schema_of
from server.telemetry.metrics import Metrics
from tests.fault.cdc_relay import SECRET
from tests.fix_cdc import SETTINGS, OwnPostgres, Stored, run, streaming
from tests.fix_runs import OwnNats, eventually

WIDE = "INSERT INTO t SELECT n, repeat('x', 40000) FROM generate_series(1, 50) AS n"
"""2 MB of log, few events."""

ROLLED_BACK = ("BEGIN", "CREATE TABLE gone AS SELECT n FROM generate_series(1, 20000) AS n", "ROLLBACK")
"""In files of which nobody knows any more whose they were."""

REWRITTEN = ("VACUUM FULL t",)
"""Log in which there is no change."""


@dataclass
class Writer:
    """Writes flat out, a new session for each `statements`, however often it is turned away."""

    url: str
    statements: Sequence[str]
    pause_s: float = 0.0
    refused: list[str] = field(default_factory=list)
    rounds: int = 0
    stopped: bool = False

    async def go_on(self) -> None:
        while not self.stopped:
            try:
                async with await AsyncConnection.connect(self.url, autocommit=True) as person:
                    await run(person, *self.statements)
                self.rounds += 1
                await asyncio.sleep(self.pause_s)
            except psycopg.Error as why:
                self.refused.append(str(why))
                await asyncio.sleep(0.02)


@asynccontextmanager
async def writing(*writers: Writer) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(writer.go_on()) for writer in writers]
    try:
        yield
    finally:
        for writer in writers:
            writer.stopped = True
        await asyncio.wait(tasks)


async def held(tenants: Tenants) -> set[str]:
    async with tenants.admin() as admin:
        cursor = await admin.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^proj_' AND rolconnlimit = 0")
        return {name for (name,) in await cursor.fetchall()}


async def rows(url: str) -> int:
    async with await AsyncConnection.connect(url) as person:
        ((count,),) = await (await person.execute("SELECT count(*) FROM t")).fetchall()
        return int(count)


async def slots(tenants: Tenants) -> list[str]:
    """Those that are not lost."""
    async with tenants.admin() as admin:
        cursor = await admin.execute("SELECT slot_name FROM pg_replication_slots WHERE wal_status <> 'lost'")
        return [name for (name,) in await cursor.fetchall()]


async def test_who_outruns_the_relay_is_held_and_not_its_neighbour(
    make_postgres: Callable[..., OwnPostgres], own_nats: OwnNats
) -> None:
    server = make_postgres(max_slot_wal_keep_size="384MB", max_wal_size="64MB")
    tenants = Tenants(server.url, secret=SECRET, other_databases=())
    await tenants.start()
    projects = [str(uuid4()) for _ in range(4)]
    for project in projects:
        await tenants.provision(project)
    *greedy, neighbour = projects
    bus, metrics = EventBus(own_nats.url), Metrics()
    await bus.start()
    relay = Relay(tenants, bus, SETTINGS, metrics)
    await relay.start()
    await streaming(tenants)
    slot = await slots(tenants)
    for project in projects:
        async with await AsyncConnection.connect(tenants.psql_url(project), autocommit=True) as person:
            await run(person, "CREATE TABLE t (n int, x text)", "ALTER TABLE t ALTER x SET STORAGE EXTERNAL")
    rewriting = tenants.psql_url(greedy[2])
    async with await AsyncConnection.connect(rewriting, autocommit=True) as person:
        await run(person, WIDE)
    await Stored(bus).of(greedy[2], 50)
    own_nats.kill()
    writers = [
        Writer(tenants.psql_url(greedy[0]), [WIDE]),
        Writer(tenants.psql_url(greedy[1]), ROLLED_BACK),
        Writer(rewriting, REWRITTEN),
    ]
    modest = Writer(tenants.psql_url(neighbour), ["INSERT INTO t VALUES (1, 'x')"], pause_s=0.02)
    async with writing(modest):
        async with writing(*writers):

            async def all_held() -> bool:
                assert await slots(tenants) == slot
                return await held(tenants) == {schema_of(project) for project in greedy}

            await eventually(all_held, within_s=60)
            rounds = modest.rounds

            async def goes_on() -> bool:
                return modest.rounds > rounds + 20

            await eventually(goes_on)
        assert await slots(tenants) == slot
        own_nats.start()

        async def none_held() -> bool:
            return not await held(tenants)

        await eventually(none_held, within_s=60)
    assert not modest.refused
    assert all(any("too many connections" in why for why in writer.refused) for writer in writers)
    stored = Stored(bus)
    await stored.of(neighbour, modest.rounds, within_s=60)
    await stored.of(greedy[0], await rows(writers[0].url), within_s=60)
    assert not any(event.type == "cdc.gap" for event in stored.events)
    await relay.close()
    await bus.close()


async def test_log_that_is_confirmed_is_let_go_of_though_the_server_would_wait(
    make_postgres: Callable[..., OwnPostgres], own_nats: OwnNats
) -> None:
    """It notes which transactions are open every 15 s: enough for a quick tenant to fill what the slot may hold."""
    tenants = Tenants(make_postgres(max_slot_wal_keep_size="64MB").url, secret=SECRET, other_databases=())
    await tenants.start()
    bus = EventBus(own_nats.url)
    await bus.start()
    relay = Relay(tenants, bus, SETTINGS, Metrics())
    await relay.start()
    await streaming(tenants)
    slot = await slots(tenants)
    async with tenants.admin() as admin:
        for _ in range(4):
            await run(admin, "SELECT pg_logical_emit_message(false, 'x', repeat('x', 20000000))")

            async def let_go() -> bool:
                standing = await standing_of(admin, slot[0])
                return standing is not None and standing.held_bytes < 20_000_000

            await eventually(let_go)
    assert await slots(tenants) == slot
    await relay.close()
    await bus.close()
