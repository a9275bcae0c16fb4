"""Changes that wait while what they are of is altered or deleted, what is read twice, what is lost or unreadable."""

import asyncio
import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from server.cdc import gaps
from server.cdc.link import Link
from server.cdc.relay import Relay
from server.events import stream
from server.events.bus import EventBus
from server.postgres.channel import ConnectionLost
from server.postgres.tenants import Tenants
from server.telemetry.metrics import Metrics
from tests.fault.cdc_relay import SECRET
from tests.fix_cdc import SETTINGS, OwnPostgres, Stored, run, streaming
from tests.fix_runs import OwnNats, eventually


async def test_what_waits_is_told_as_it_was_though_its_table_was_altered_and_dropped_since(
    make_relay: Callable[[], Relay], stored: Stored, person: AsyncConnection, project: str, tenants: Tenants
) -> None:
    await away(make_relay, tenants)
    await run(
        person,
        "CREATE TABLE t (id int, gone text)",
        "INSERT INTO t VALUES (1, 'a')",
        "ALTER TABLE t ADD COLUMN more int DEFAULT 7",
        "INSERT INTO t VALUES (2, 'b')",
        "ALTER TABLE t DROP COLUMN gone",
        "UPDATE t SET more = 8 WHERE id = 1",
        "ALTER TABLE t RENAME COLUMN more TO less",
        "INSERT INTO t VALUES (3, 9)",
        "ALTER TABLE t ALTER less TYPE text",
        "DELETE FROM t WHERE id = 3",
        "ALTER TABLE t RENAME TO u",
        "INSERT INTO u VALUES (4, 'x')",
        "DROP TABLE u",
        "CREATE TABLE t (again bool)",
        "INSERT INTO t VALUES (true)",
    )
    await make_relay().start()
    events = await stored.of(project, 7)
    assert [(event.type[4:], event.data.value) for event in events] == [
        ("INSERT.t", {"id": 1, "gone": "a"}),
        ("INSERT.t", {"id": 2, "gone": "b", "more": 7}),
        ("UPDATE.t", {"id": 1, "more": 8}),
        ("INSERT.t", {"id": 3, "less": 9}),
        ("DELETE.t", {"id": 3, "less": "9"}),
        ("INSERT.u", {"id": 4, "less": "x"}),
        ("INSERT.t", {"again": True}),
    ]


async def test_what_waits_of_a_project_that_is_deleted_is_told_and_in_nobodys_way(
    make_relay: Callable[[], Relay], stored: Stored, person: AsyncConnection, project: str, tenants: Tenants
) -> None:
    await away(make_relay, tenants)
    other = str(uuid4())
    await tenants.provision(other)
    await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
    async with await AsyncConnection.connect(tenants.psql_url(other), autocommit=True) as second:
        await run(second, "CREATE TABLE t (id int)", "INSERT INTO t SELECT generate_series(1, 1500)", "TRUNCATE t")
    await tenants.drop(other)
    await run(person, "INSERT INTO t VALUES (2)")
    await make_relay().start()
    assert [event.data.value["id"] for event in await stored.of(project, 2)] == [1, 2]
    theirs = await stored.of(other, 1501)
    assert [event.data.value and event.data.value["id"] for event in theirs] == [*range(1, 1501), None]


async def test_what_is_read_again_after_the_stream_forgot_its_ids_is_left_out(
    make_relay: Callable[[], Relay],
    stored: Stored,
    cdc_bus: EventBus,
    person: AsyncConnection,
    project: str,
    tenants: Tenants,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The relay dies before it tells Postgres what is stored, and comes back after the deduplication window."""
    with monkeypatch.context() as patched:
        patched.setattr(Link, "confirm", lambda self, lsn: None)
        await stream.ensure(cdc_bus, SETTINGS)
        config = (await cdc_bus.jetstream.stream_info(stream.NAME)).config
        await cdc_bus.jetstream.update_stream(replace(config, duplicate_window=0.1))
        first = make_relay()
        await first.start()
        await streaming(tenants)
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
        await run(person, "INSERT INTO t SELECT generate_series(2, 5)")
        await stored.of(project, 5)
        await first.close()
    await asyncio.sleep(0.2)  # the window
    await make_relay().start()
    await run(person, "INSERT INTO t VALUES (6)")
    assert [event.data.value["id"] for event in await stored.of(project, 6)] == [1, 2, 3, 4, 5, 6]


async def test_what_fails_while_it_is_being_ended_is_not_reported_by_the_event_loop(
    make_relay: Callable[[], Relay], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Postgres goes away from all that a relay does at once: that is told once, and by us."""

    async def fail_late(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionLost("gone, too") from None

    async def fail(*_: object) -> None:
        raise ConnectionLost("gone")

    monkeypatch.setattr(gaps, "tell", fail_late)
    monkeypatch.setattr(Relay, "_watch", fail)
    await make_relay().start()

    async def told() -> bool:
        return "Changes wait in Postgres" in caplog.text

    await eventually(told)
    gc.collect()
    assert not [record.message for record in caplog.records if record.name == "asyncio"]


async def away(make_relay: Callable[[], Relay], tenants: Tenants) -> None:
    """The relay was there, so that there is a slot, and no longer is."""
    relay = make_relay()
    await relay.start()
    await streaming(tenants)
    await relay.close()


async def test_a_slot_that_postgres_gave_up_is_replaced_and_the_gap_told(
    make_postgres: Callable[..., OwnPostgres], own_nats: OwnNats, caplog: pytest.LogCaptureFixture
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
    [alert] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "is lost (wal_removed)" in alert
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
