"""Relay, NATS and Postgres killed while tenants write: each committed change is in the stream once, rows in order."""

import asyncio
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from server.cdc.relay import Relay
from server.events import stream
from server.events.bus import EventBus
from server.postgres.tenants import Tenants
from server.telemetry.metrics import Metrics
from tests.fault.cdc_relay import SECRET
from tests.fix_cdc import SETTINGS, OwnPostgres, Stored, run, streaming
from tests.fix_runs import OwnNats, eventually

CHAOS_S = 12.0
ROWS = 20


class Relays:
    """Processes, two at a time, of which one streams."""

    def __init__(self, tenants_url: str, nats_url: str) -> None:
        self._argv = [sys.executable, "-m", "tests.fault.cdc_relay", tenants_url, nats_url]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.deaths = 0

    def fill(self) -> None:
        while len(self._processes) < 2:
            self._processes.append(subprocess.Popen(self._argv))

    def kill_one(self) -> None:
        process = self._processes.pop(random.randrange(len(self._processes)))
        process.kill()
        process.wait()
        self.deaths += 1

    def end(self) -> None:
        while self._processes:
            self.kill_one()


@pytest.fixture
def server(make_postgres: Callable[..., OwnPostgres]) -> OwnPostgres:
    return make_postgres()


@pytest.fixture
def relays(server: OwnPostgres, own_nats: OwnNats) -> Iterator[Relays]:
    made = Relays(server.url, own_nats.url)
    yield made
    made.end()


async def write(url: str, writer: int, ends_s: float) -> None:
    """Transactions of a few updates of rows shared by all writers, each noted in `log`; on through every outage."""
    loop, number = asyncio.get_running_loop(), 0
    while loop.time() < ends_s:
        with suppress(psycopg.Error):
            async with await AsyncConnection.connect(url) as person:
                while loop.time() < ends_s:
                    number += 1
                    await person.execute("INSERT INTO log VALUES (%s, %s)", [writer, number])
                    for row in sorted(random.sample(range(ROWS), 5)):
                        await person.execute("UPDATE t SET version = version + 1 WHERE id = %s", [row])
                    if number % 7 == 0:
                        await person.rollback()
                    else:
                        await person.commit()
        await asyncio.sleep(0.02)


async def without_deduplication(bus: EventBus) -> None:
    """The stream forgets ids at once, as it would minutes later: what is published twice then is there twice."""
    await stream.ensure(bus, SETTINGS)
    config = (await bus.jetstream.stream_info(stream.NAME)).config
    await bus.jetstream.update_stream(replace(config, duplicate_window=0.1))


async def test_each_committed_change_is_in_the_stream_once_and_in_order(
    server: OwnPostgres, own_nats: OwnNats, relays: Relays
) -> None:
    tenants = Tenants(server.url, secret=SECRET, other_databases=())
    await tenants.start()
    project = str(uuid4())
    await tenants.provision(project)
    url = tenants.psql_url(project)
    bus = EventBus(own_nats.url)
    await bus.start()
    await without_deduplication(bus)
    relays.fill()
    await streaming(tenants)
    async with await AsyncConnection.connect(url, autocommit=True) as person:
        await run(
            person,
            "CREATE TABLE log (writer int, number int)",
            "CREATE TABLE t (id int, version int)",
            f"INSERT INTO t SELECT i, 0 FROM generate_series(0, {ROWS - 1}) AS i",
        )
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + CHAOS_S
    writers = [asyncio.create_task(write(url, writer, ends_s)) for writer in range(4)]
    while loop.time() < ends_s:
        await asyncio.sleep(random.uniform(0.1, 0.6))
        match random.choice(("relay", "relay", "relay", "nats", "postgres")):
            case "relay":
                relays.kill_one()
            case "nats":
                own_nats.kill()
                await asyncio.sleep(random.uniform(0, 0.5))
                own_nats.start()
            case "postgres":
                server.kill()
                server.start()
        relays.fill()
    await asyncio.gather(*writers)

    async with await AsyncConnection.connect(url, autocommit=True) as person:
        cursor = await person.execute("SELECT writer, number FROM log")
        committed = set(await cursor.fetchall())
        cursor = await person.execute("SELECT id, version FROM t")
        final: dict[int, int] = dict(await cursor.fetchall())
    changes = len(committed) + ROWS + sum(final.values())
    events = await Stored(bus).of(project, changes, within_s=60)
    await bus.close()
    logged = [(event.data.value["writer"], event.data.value["number"]) for event in events if "log" in event.type]
    assert len(logged) == len(set(logged))
    assert set(logged) == committed
    versions = defaultdict(list)
    for event in events:
        if event.type.endswith(".t"):
            versions[event.data.value["id"]].append(event.data.value["version"])
    assert versions == {row: list(range(version + 1)) for row, version in final.items()}
    assert relays.deaths > 3
    assert len(committed) > 100


async def test_a_slot_that_postgres_gave_up_is_replaced_and_the_gap_told(
    make_postgres: Callable[..., OwnPostgres], own_nats: OwnNats
) -> None:
    server = make_postgres(max_slot_wal_keep_size="16MB", max_wal_size="32MB", min_wal_size="32MB")
    tenants = Tenants(server.url, secret=SECRET, other_databases=())
    await tenants.start()
    project, metrics = str(uuid4()), Metrics()
    await tenants.provision(project)
    bus = EventBus(own_nats.url)
    await bus.start()
    stored = Stored(bus)
    relay = Relay(tenants, bus, SETTINGS, metrics)
    await relay.start()
    active = await streaming(tenants)
    async with (
        await AsyncConnection.connect(tenants.psql_url(project), autocommit=True) as person,
        tenants.admin() as admin,
    ):
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
        await stored.of(project, 1)
        await relay.close()
        for number in range(5):
            await run(person, f"INSERT INTO t VALUES ({-number})")
            await run(admin, "SELECT pg_switch_wal()")

        async def lost() -> bool:
            await run(admin, "CHECKPOINT")
            cursor = await admin.execute("SELECT FROM pg_replication_slots WHERE wal_status = 'lost'")
            return bool(cursor.rowcount)

        await eventually(lost)
        relay = Relay(tenants, bus, SETTINGS, metrics)
        await relay.start()
        await streaming(tenants, but=active)
        await run(person, "INSERT INTO t VALUES (2)")
        events = await stored.of(project, 3)
        assert [event.type for event in events] == ["cdc.INSERT.t", "cdc.gap", "cdc.INSERT.t"]
        assert events[1].data.value["reason"] == "wal_removed"
        assert events[2].data.value == {"id": 2}
        cursor = await admin.execute("SELECT count(*) FROM pg_replication_slots")
        assert await cursor.fetchone() == (1,)
    assert {record.name: record.doubles for record in metrics.numbers.records()}[("atlas_cdc_gaps_total",)] == (1.0,)
    await relay.close()
    await bus.close()


async def test_a_tenant_cannot_pin_the_log_until_everybodys_slot_is_lost(
    make_postgres: Callable[..., OwnPostgres], own_nats: OwnNats
) -> None:
    tenants = Tenants(make_postgres(max_slot_wal_keep_size="64MB").url, secret=SECRET, other_databases=())
    await tenants.start()
    project = str(uuid4())
    await tenants.provision(project)
    bus = EventBus(own_nats.url)
    await bus.start()
    relay = Relay(tenants, bus, SETTINGS, Metrics())
    await relay.start()
    await streaming(tenants)
    idle = await AsyncConnection.connect(tenants.psql_url(project))
    async with tenants.admin() as admin:
        await run(idle, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")

        async def ended() -> bool:
            await run(
                admin,
                "SELECT pg_log_standby_snapshot()",
                "SELECT pg_switch_wal() FROM pg_replication_slots WHERE safe_wal_size > 24e6",
            )
            cursor = await admin.execute("SELECT FROM pg_stat_activity WHERE usename ~ '^proj_'")
            return not cursor.rowcount

        await eventually(ended, within_s=30)
        cursor = await admin.execute("SELECT wal_status FROM pg_replication_slots")
        assert await cursor.fetchone() != ("lost",)
    with suppress(psycopg.Error):
        await idle.close()
    await relay.close()
    await bus.close()


async def test_a_row_that_postgres_cannot_decode_is_skipped_and_its_project_told(
    make_postgres: Callable[..., OwnPostgres], own_nats: OwnNats
) -> None:
    """Its columns are small for who writes it, who copies them as they are stored, compressed; not so when they are
    sent."""
    tenants = Tenants(make_postgres(backend_bytes=256 * 1024**2).url, secret=SECRET, other_databases=())
    await tenants.start()
    project, other = str(uuid4()), str(uuid4())
    bus = EventBus(own_nats.url)
    await bus.start()
    stored = Stored(bus)
    relay = Relay(tenants, bus, SETTINGS, Metrics())
    for one in (project, other):
        await tenants.provision(one)
    await relay.start()
    await streaming(tenants)
    async with (
        await AsyncConnection.connect(tenants.psql_url(project), autocommit=True) as person,
        await AsyncConnection.connect(tenants.psql_url(other), autocommit=True) as neighbour,
    ):
        await run(person, "CREATE TABLE t (id int, a text, b text, c text, d text, e text, f text, g text, h text)")
        await run(neighbour, "CREATE TABLE t (id int)")
        await run(person, "INSERT INTO t VALUES (1)", "UPDATE t SET a = repeat('x', 30000000)")
        await run(person, "BEGIN", "UPDATE t SET b=a, c=a, d=a, e=a, f=a, g=a, h=a")
        await run(neighbour, "INSERT INTO t VALUES (1)")
        await run(person, "COMMIT")
        await run(neighbour, "INSERT INTO t VALUES (2)")
        await run(person, "INSERT INTO t VALUES (3)")
    theirs = await stored.of(other, 2, within_s=60)
    assert [event.data.value for event in theirs] == [{"id": 1}, {"id": 2}], "no gap for those who lost nothing"
    insert, update, gap, last = await stored.of(project, 4)
    assert [event.type for event in (insert, update, gap)] == ["cdc.INSERT.t", "cdc.UPDATE.t", "cdc.gap"]
    assert last.data.value["id"] == 3
    assert gap.data.value["reason"].startswith("undecodable (53200)")
    await relay.close()
    await bus.close()
