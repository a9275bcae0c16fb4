"""The relay at work: restarts, successors, full and deleted streams, lost slots, and what operators see."""

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from psycopg import AsyncConnection, OperationalError

from server.cdc import pump, slot
from server.cdc import relay as relaying
from server.cdc.link import Link
from server.cdc.pgoutput import Message, ProtocolError, decode
from server.cdc.relay import Relay
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import Event, encode
from server.events.json_text import read
from server.postgres.channel import Address, Channel, Reader
from server.postgres.tenants import Tenants
from server.settings import Settings
from server.telemetry.metrics import Metrics
from tests.fix_cdc import Stored, forget_slots, run, streaming
from tests.fix_runs import eventually


class TestRelay:
    async def test_what_was_committed_while_none_was_there_comes_once(
        self,
        make_relay: Callable[[], Relay],
        stored: Stored,
        person: AsyncConnection,
        project: str,
        tenants: Tenants,
    ) -> None:
        first = make_relay()
        await first.start()
        await streaming(tenants)
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
        await stored.of(project, 1)
        await first.close()
        await run(person, "INSERT INTO t VALUES (2)")
        second = make_relay()
        await second.start()
        assert [event.data.value["id"] for event in await stored.of(project, 2)] == [1, 2]

    async def test_another_takes_over_within_about_a_second(
        self, make_relay: Callable[[], Relay], stored: Stored, person: AsyncConnection, project: str, tenants: Tenants
    ) -> None:
        relays = [make_relay() for _ in range(3)]
        for relay in relays:
            await relay.start()
        active = await streaming(tenants)
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
        await stored.of(project, 1)
        async with tenants.admin() as admin:
            await admin.execute("SELECT pg_terminate_backend(%s)", [active])
        await run(person, "INSERT INTO t VALUES (2)")
        assert await streaming(tenants, but=active)
        assert [event.data.value["id"] for event in await stored.of(project, 2)] == [1, 2]

    async def test_a_stream_that_is_deleted_is_made_again(
        self, relay: Relay, cdc_bus: EventBus, person: AsyncConnection, project: str
    ) -> None:
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
        await Stored(cdc_bus).of(project, 1)
        await cdc_bus.jetstream.delete_stream(stream.NAME)
        await run(person, "INSERT INTO t VALUES (2)")
        assert [event.data.value["id"] for event in await Stored(cdc_bus).of(project, 1)] == [2]

    async def test_a_full_stream_makes_them_wait(
        self,
        cdc_bus: EventBus,
        person: AsyncConnection,
        project: str,
        tenants: Tenants,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        relay = Relay(tenants, cdc_bus, Settings(events_keep_mb=16), Metrics())
        await relay.start()
        await streaming(tenants)
        await run(person, "CREATE TABLE t (id int, v text)")
        await run(person, "INSERT INTO t SELECT i, repeat('x', 900000) FROM generate_series(1, 25) AS i")

        async def full() -> bool:
            return "the stream is full" in caplog.text

        await eventually(full)
        before = Stored(cdc_bus)
        stayed = len(await before.read())
        assert 0 < stayed < 25
        await cdc_bus.jetstream.purge_stream(stream.NAME)
        after = await Stored(cdc_bus).of(project, 25 - stayed)
        assert [event.data.value["id"] for event in (*before.events, *after)] == list(range(1, 26))
        await relay.close()
        await forget_slots(tenants)

    async def test_what_was_read_before_a_transaction_that_is_skipped_is_stored_though_the_stream_was_full(
        self,
        cdc_bus: EventBus,
        person: AsyncConnection,
        project: str,
        tenants: Tenants,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refusing(body: bytes) -> Message:
            if b"unreadable" in body:
                raise ProtocolError("not this one")
            return decode(body)

        monkeypatch.setattr(pump, "decode", refusing)
        other = str(uuid4())
        await tenants.provision(other)
        relay = Relay(tenants, cdc_bus, Settings(events_keep_mb=16), Metrics())
        await relay.start()
        await streaming(tenants)
        await run(person, "CREATE TABLE t (id int, v text)")
        async with await AsyncConnection.connect(tenants.psql_url(other), autocommit=True) as tenant:
            await run(tenant, "CREATE TABLE t (v text)")
            for number in range(1, 26):
                await run(person, f"INSERT INTO t VALUES ({number}, repeat('x', 900000))")
            await run(tenant, "INSERT INTO t VALUES ('unreadable')")
        await run(person, "INSERT INTO t VALUES (26)")

        async def full() -> bool:
            return "the stream is full" in caplog.text

        await eventually(full)
        before = Stored(cdc_bus)
        stayed = len(await before.read())
        assert 0 < stayed < 25
        assert "cdc.undecodable" not in caplog.text, "no strike before they are stored"
        await cdc_bus.jetstream.purge_stream(stream.NAME)
        after = Stored(cdc_bus)
        mine = await after.of(project, 26 - stayed)
        assert [event.data.value["id"] for event in (*before.events, *mine)] == list(range(1, 27))
        [gap] = await after.of(other, 1)
        assert gap.data.value["reason"] == "undecodable (protocol)"
        await relay.close()
        await forget_slots(tenants)
        await tenants.drop(other)

    async def test_what_others_publish_among_the_changes_changes_nothing(
        self, relay: Relay, stored: Stored, cdc_bus: EventBus, person: AsyncConnection, project: str
    ) -> None:
        forged = Event(
            id="1",
            type="cdc.INSERT.forged",
            project_id=str(uuid4()),
            time=datetime.now(UTC),
            source="x",
            data=read(b"1"),
        )
        await run(person, "CREATE TABLE t (id int)")
        for number in range(5):
            await run(person, f"INSERT INTO t VALUES ({number})")
            await stored.of(project, number + 1)
            await cdc_bus.jetstream.publish(f"{stream.PREFIX}cdc.INSERT.forged", encode(forged))
        assert [event.data.value["id"] for event in await stored.of(project, 5)] == list(range(5))

    async def test_the_slot_follows_while_nothing_of_ours_is_written(self, relay: Relay, tenants: Tenants) -> None:
        async with tenants.admin() as admin:
            await run(admin, "CREATE TABLE atlas.noise AS SELECT generate_series(1, 1000) AS i")
            cursor = await admin.execute("SELECT pg_current_wal_lsn()::text")
            (written,) = await cursor.fetchone() or ("",)

            async def followed() -> bool:
                cursor = await admin.execute(
                    "SELECT FROM pg_replication_slots WHERE confirmed_flush_lsn >= %s::pg_lsn"
                    " AND database = current_database()",
                    [written],
                )
                return bool(cursor.rowcount)

            await eventually(followed)
            await run(admin, "DROP TABLE atlas.noise")

    async def test_a_slot_that_is_gone_is_made_again_and_the_gap_told_to_all(
        self,
        make_relay: Callable[[Metrics], Relay],
        stored: Stored,
        person: AsyncConnection,
        project: str,
        tenants: Tenants,
    ) -> None:
        metrics = Metrics()
        first = make_relay(metrics)
        await first.start()
        pid = await streaming(tenants)
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
        await stored.of(project, 1)
        await first.close()
        async with tenants.admin() as admin:

            async def idle() -> bool:
                cursor = await admin.execute("SELECT FROM pg_replication_slots WHERE active_pid = %s", [pid])
                return not cursor.rowcount

            await eventually(idle)
            await admin.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                " WHERE database = current_database()"
            )
        await run(person, "INSERT INTO t VALUES (2)")
        other = str(uuid4())
        await tenants.provision(other)
        second = make_relay(metrics)
        await second.start()
        await streaming(tenants)
        await run(person, "INSERT INTO t VALUES (3)")
        events = await stored.of(project, 3)
        assert [event.type for event in events] == ["cdc.INSERT.t", "cdc.gap", "cdc.INSERT.t"]
        assert events[1].data.value["reason"] == "slot_missing"
        assert events[2].data.value == {"id": 3}
        assert [event.type for event in await stored.of(other, 1)] == ["cdc.gap"]
        await tenants.drop(other)

    async def test_operators_see_what_it_does(
        self,
        make_relay: Callable[[Metrics], Relay],
        stored: Stored,
        person: AsyncConnection,
        project: str,
        tenants: Tenants,
    ) -> None:
        metrics = Metrics()
        await make_relay(metrics).start()
        await streaming(tenants)
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1), (2)", "DELETE FROM t")
        await stored.of(project, 4)

        async def seen() -> bool:
            found = {record.name: record.doubles for record in metrics.numbers.records()}
            return (
                found.get(("atlas_cdc_changes_total", "INSERT"), (0.0,)) >= (2.0,)
                and found.get(("atlas_cdc_changes_total", "DELETE"), (0.0,)) >= (2.0,)
                and found.get(("atlas_cdc_slot", "reserved")) == (1.0,)
                and ("atlas_cdc_lag_bytes",) in found
            )

        await eventually(seen)


async def test_an_open_transaction_does_not_keep_the_slot_from_being_made(
    make_relay: Callable[[], Relay], tenants: Tenants, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "CLAIM_S", 0.1)
    monkeypatch.setattr(slot, "PINNING_S", 0.1)
    async with await AsyncConnection.connect(tenants.psql_url(project)) as idle:
        await run(idle, "CREATE TABLE t (id int)")
        await make_relay().start()

        async def ended() -> bool:
            try:
                await run(idle, "SELECT 1")
            except OperationalError:
                return True
            return False

        await eventually(ended)
    await streaming(tenants)


async def test_a_link_to_a_server_that_is_gone_is_closed_in_time() -> None:
    """Nothing that is sent is read any more."""
    ours, theirs = socket.socketpair()
    with theirs:
        loop, reader = asyncio.get_running_loop(), Reader()
        transport, protocol = await loop.create_connection(lambda: asyncio.StreamReaderProtocol(reader), sock=ours)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        channel = Channel(Address(host="x", port=1), reader, writer)
        writer.write(bytes(8 * 1024 * 1024))
        link = Link(channel, reader, writer.write)
        async with asyncio.timeout(5):
            await link.close()
        assert transport.is_closing()
