"""Changes of tables as events: a real Postgres, a real NATS, a tenant with psql."""

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from psycopg import AsyncConnection, OperationalError
from psycopg.errors import FeatureNotSupported

from server.cdc import pump, slot
from server.cdc import relay as relaying
from server.cdc.changes import Changes, TooManyTables
from server.cdc.link import Link
from server.cdc.pgoutput import Begin, Message, ProtocolError, decode
from server.cdc.position import lsn_text, parse_position
from server.cdc.relay import Relay
from server.cdc.strikes import STRIKES, Strikes
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import MAX_EVENT_BYTES, Change, Event, encode
from server.events.json_text import read
from server.events.types import unescape
from server.postgres import publication
from server.postgres.channel import Address, Channel, Reader, SqlError
from server.postgres.tenants import Tenants, schema_of
from server.settings import Settings
from server.telemetry.metrics import Metrics
from tests.fault.cdc_relay import SECRET
from tests.fix_cdc import SETTINGS, OwnPostgres, Stored, forget_slots, run, streaming
from tests.fix_runs import eventually


def change_of(event: Event) -> Change:
    assert event.change
    return event.change


def old_of(change: Change) -> Any:
    assert change.old
    return change.old.value


class TestRows:
    async def test_they_become_events_in_their_order(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE orders (id int PRIMARY KEY, amount numeric, note text)",
            "INSERT INTO orders VALUES (1, 50, 'a'), (2, 100.01, NULL)",
            "UPDATE orders SET amount = 'NaN' WHERE id = 2",
            "DELETE FROM orders WHERE id = 1",
            "TRUNCATE orders",
        )
        events = await stored.of(project, 5)
        assert [(event.type, event.data.text) for event in events] == [
            ("cdc.INSERT.orders", '{"id":1,"amount":50,"note":"a"}'),
            ("cdc.INSERT.orders", '{"id":2,"amount":100.01,"note":null}'),
            ("cdc.UPDATE.orders", '{"id":2,"amount":"NaN","note":null}'),
            ("cdc.DELETE.orders", '{"id":1,"amount":50,"note":"a"}'),
            ("cdc.TRUNCATE.orders", "null"),
        ]
        changes = [change_of(event) for event in events]
        assert [change.op for change in changes] == ["INSERT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"]
        insert, _, update, delete, _ = changes
        assert (insert.schema, insert.table, insert.old) == (schema_of(project), "orders", None)
        assert old_of(update) == {"id": 2, "amount": 100.01, "note": None}
        assert update.changed == ("amount",)
        assert old_of(delete) == events[3].data.value
        assert not any(change.unavailable for change in changes)
        times = [event.time for event in events]
        assert times == sorted(times)
        assert len({event.id for event in events}) == 5

    async def test_values_are_typed_as_in_answers_to_sql(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE DOMAIN cents AS bigint CHECK (VALUE >= 0)",
            "CREATE DOMAIN price AS cents",
            "CREATE TYPE mood AS ENUM ('sad', 'ok')",
            "CREATE TYPE pair AS (a int, b text)",
            """CREATE TABLE t (
                i2 int2, i4 int4, i8 int8, big int8, n numeric, exact numeric, f8 float8, inf float8, yes bool, no bool,
                t text, v varchar(9), c char(3), ts timestamptz, plain timestamp, d date, iv interval, u uuid,
                j json, jb jsonb, b bytea, ia int[], ta text[], nested int[], na numeric[], ja jsonb[], r int4range,
                m mood, p pair, dom price, ip inet, gone int, stored int GENERATED ALWAYS AS (i4 * 2) STORED)""",
            "ALTER TABLE t DROP COLUMN gone",
            r"""INSERT INTO t VALUES (
                -1, 2, 3, 9007199254740993, 0.10, 12345678901234567890.5, 0.1, '-Infinity', true, false,
                E'a"\n\u00fc', 'v', 'c', '2026-01-31 10:00:00.5+01', '2026-01-31 09:00', '2026-01-31', '1 day 02:00',
                '00000000-0000-0000-0000-000000000001', '{"a": 1.0,  "a": 2}', '{"b": [1, null]}', '\xdead',
                '{1,NULL,3}', '{"a,b",NULL,"\"q\""}', '{{1,2},{3,4}}', '{1.5,NaN}', ARRAY['{"x": 1}'::jsonb],
                '[1,5)', 'ok', '(1,"x y")', 5, '10.0.0.1')""",
        )
        (event,) = await stored.of(project, 1)
        assert event.data.value == {
            "i2": -1, "i4": 2, "i8": 3, "big": "9007199254740993", "n": 0.10, "exact": "12345678901234567890.5",
            "f8": 0.1, "inf": "-Infinity", "yes": True, "no": False, "t": 'a"\nü', "v": "v", "c": "c  ",
            "ts": "2026-01-31T09:00:00.5+00:00", "plain": "2026-01-31T09:00:00", "d": "2026-01-31",
            "iv": "1 day 02:00:00", "u": "00000000-0000-0000-0000-000000000001", "j": {"a": 2}, "jb": {"b": [1, None]},
            "b": "\\xdead", "ia": [1, None, 3], "ta": ["a,b", None, '"q"'], "nested": [[1, 2], [3, 4]],
            "na": [1.5, "NaN"], "ja": [{"x": 1}], "r": "[1,5)", "m": "ok", "p": '(1,"x y")', "dom": 5,
            "ip": "10.0.0.1", "stored": 4,
        }  # fmt: skip
        assert '"n":0.10' in event.data.text, "the digits are kept"
        assert '"j":{"a": 1.0,  "a": 2}' in event.data.text, "JSON is passed on as it is"

    async def test_a_value_stored_out_of_line_is_there_though_it_was_not_changed(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int, big text, n int)",
            "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
            "INSERT INTO t VALUES (1, repeat('x', 50000), 0)",
            "UPDATE t SET n = 1",
            "UPDATE t SET big = NULL",
        )
        _, update, null = await stored.of(project, 3)
        assert update.data.value == {"id": 1, "big": "x" * 50_000, "n": 1}
        assert (change_of(update).changed, change_of(update).unavailable) == (("n",), ())
        assert null.data.value == {"id": 1, "big": None, "n": 1}
        assert change_of(null).changed == ("big",)

    async def test_what_is_too_large_for_an_event_is_left_out_and_named(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int, small text, middle text, big text)",
            "INSERT INTO t VALUES (1, 's', repeat('m', 400000), repeat('b', 900000))",
            "INSERT INTO t VALUES (2, 's', repeat('m', 400000), repeat('b', 20000000))",
            "UPDATE t SET small = 't' WHERE id = 2",
            "UPDATE t SET big = repeat('c', 20000000) WHERE id = 2",
            "DELETE FROM t WHERE id = 2",
            "INSERT INTO t VALUES (3, 's', repeat(E'\\x01', 300000), 'escaped, it is six times as long')",
        )
        events = await stored.of(project, 6)
        changes = [change_of(event) for event in events]
        assert [change.unavailable for change in changes] == [("big",)] * 5 + [("middle",)]
        assert events[0].data.value == {"id": 1, "small": "s", "middle": "m" * 400_000}
        assert events[1].data.value == {"id": 2, "small": "s", "middle": "m" * 400_000}
        assert changes[2].changed == ("small",)
        assert changes[3].changed == ("big",)
        assert events[4].data.value == {"id": 2, "small": "t", "middle": "m" * 400_000}
        assert all(len(body) <= MAX_EVENT_BYTES for body in stored.bodies)

    async def test_json_that_events_cannot_hold_is_left_out_and_named(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int, j jsonb)",
            "INSERT INTO t VALUES (1, (repeat('[', 62) || repeat(']', 62))::jsonb)",
            "INSERT INTO t VALUES (2, (repeat('[', 63) || repeat(']', 63))::jsonb)",
            "INSERT INTO t VALUES (3, ('1' || repeat('0', 5000))::jsonb)",
            "INSERT INTO t VALUES (4, ('[' || repeat('1,', 100000) || '1]')::jsonb)",
        )
        events = await stored.of(project, 4)
        unavailable = [change_of(event).unavailable for event in events]
        assert unavailable == [(), ("j",), ("j",), ("j",)]

    async def test_what_is_rolled_back_is_no_event(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int)",
            "BEGIN",
            "INSERT INTO t VALUES (1)",
            "ROLLBACK",
            "BEGIN",
            "INSERT INTO t VALUES (2)",
            "SAVEPOINT s",
            "INSERT INTO t VALUES (3)",
            "ROLLBACK TO s",
            "INSERT INTO t VALUES (4)",
            "COMMIT",
        )
        assert [event.data.value["id"] for event in await stored.of(project, 2)] == [2, 4]

    async def test_transactions_come_in_the_order_of_their_commits(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str, tenants: Tenants
    ) -> None:
        await run(person, "CREATE TABLE t (id int)", "BEGIN", "INSERT INTO t VALUES (1)")
        async with await AsyncConnection.connect(tenants.psql_url(project), autocommit=True) as other:
            await run(other, "INSERT INTO t VALUES (2)")
        await run(person, "INSERT INTO t VALUES (3)", "COMMIT")
        assert [event.data.value["id"] for event in await stored.of(project, 3)] == [2, 1, 3]

    async def test_many_rows_of_one_transaction(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t SELECT generate_series(1, 5000)")
        events = await stored.of(project, 5000, within_s=60)
        assert [event.data.value["id"] for event in events] == list(range(1, 5001))
        assert len({event.id for event in events}) == 5000
        positions = [parse_position(headers["Atlas-Cdc"]) for headers in stored.headers]
        assert [position and position.change for position in positions] == list(range(1, 5001))


class TestTables:
    async def test_odd_names_have_types_that_lead_back_to_them(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        names = ["two words", "Punkt.t", 'quo"te', "größe", "line\nbreak", "*", ">", "%41", "x" * 63, "中文", " "]
        for name in names:
            quoted = '"' + name.replace('"', '""') + '"'
            await run(person, f"CREATE TABLE {quoted} ({quoted} int)", f"INSERT INTO {quoted} VALUES (1)")
            await run(person, f"UPDATE {quoted} SET {quoted} = 2")
        events = await stored.of(project, 2 * len(names))
        assert [unescape(event.type.removeprefix("cdc.INSERT.")) for event in events[::2]] == names
        assert [change_of(event).table for event in events[::2]] == names
        assert [change_of(event).changed for event in events[1::2]] == [(name,) for name in names]
        assert events[0].type == "cdc.INSERT.two%20words"

    async def test_what_is_altered_in_flight_shows_in_the_next_row(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int)",
            "BEGIN",
            "INSERT INTO t VALUES (1)",
            "ALTER TABLE t ADD COLUMN more text DEFAULT 'd'",
            "INSERT INTO t VALUES (2)",
            "ALTER TABLE t ALTER id TYPE text",
            "INSERT INTO t VALUES ('3')",
            "ALTER TABLE t RENAME more TO less",
            "INSERT INTO t VALUES ('4')",
            "ALTER TABLE t RENAME TO u",
            "INSERT INTO u VALUES ('5')",
            "DROP TABLE u",
            "COMMIT",
            "CREATE TABLE t (again bool)",
            "INSERT INTO t VALUES (true)",
        )
        events = await stored.of(project, 6)
        assert [(event.type[11:], event.data.value) for event in events] == [
            ("t", {"id": 1}),
            ("t", {"id": 2, "more": "d"}),
            ("t", {"id": "3", "more": "d"}),
            ("t", {"id": "4", "less": "d"}),
            ("u", {"id": "5", "less": "d"}),
            ("t", {"again": True}),
        ]

    @pytest.mark.parametrize(
        "made",
        [
            ["CREATE TABLE t (id int, v int)", "INSERT INTO t VALUES (1, 1)"],
            ["CREATE TABLE t AS SELECT 1 AS id, 1 AS v"],
            ["SELECT 1 AS id, 1 AS v INTO t"],
            ["CREATE TABLE t (id int PRIMARY KEY, v int)", "INSERT INTO t VALUES (1, 1)"],
            ["CREATE UNLOGGED TABLE t (id int, v int)", "ALTER TABLE t SET LOGGED", "INSERT INTO t VALUES (1, 1)"],
            ["DO $$ BEGIN CREATE TABLE t (id int, v int); INSERT INTO t VALUES (1, 1); END $$"],
            ["CREATE TABLE t (id int, v int)", "ALTER TABLE t REPLICA IDENTITY NOTHING", "INSERT INTO t VALUES (1, 1)"],
            [
                "CREATE TABLE t (id int PRIMARY KEY, v int)",
                "ALTER TABLE t REPLICA IDENTITY USING INDEX t_pkey",
                "INSERT INTO t VALUES (1, 1)",
            ],
            ["CREATE TYPE rec AS (id int, v int)", "CREATE TABLE t OF rec", "INSERT INTO t VALUES (1, 1)"],
        ],
    )
    async def test_every_way_to_make_one_gives_whole_old_rows(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str, made: list[str]
    ) -> None:
        await run(person, *made, "UPDATE t SET v = 2", "DELETE FROM t")
        _, update, delete = await stored.of(project, 3)
        assert old_of(change_of(update)) == {"id": 1, "v": 1}
        assert delete.data.value == {"id": 1, "v": 2}

    async def test_partitions_speak_for_their_table_and_children_for_themselves(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE p (id int, at date) PARTITION BY RANGE (at)",
            "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
            "CREATE TABLE p2 (at date, id int)",
            "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')",
            "INSERT INTO p VALUES (1, '2026-01-10')",
            "INSERT INTO p2 VALUES ('2026-02-10', 2)",
            "UPDATE p SET at = '2026-02-11' WHERE id = 1",
            "CREATE TABLE parent (id int)",
            "CREATE TABLE child (more int) INHERITS (parent)",
            "INSERT INTO child VALUES (3, 4)",
            "UPDATE parent SET id = 5",
        )
        events = await stored.of(project, 6)
        assert [(event.type, event.data.value) for event in events] == [
            ("cdc.INSERT.p", {"id": 1, "at": "2026-01-10"}),
            ("cdc.INSERT.p", {"id": 2, "at": "2026-02-10"}),
            ("cdc.DELETE.p", {"id": 1, "at": "2026-01-10"}),
            ("cdc.INSERT.p", {"id": 1, "at": "2026-02-11"}),
            ("cdc.INSERT.child", {"id": 3, "more": 4}),
            ("cdc.UPDATE.child", {"id": 5, "more": 4}),
        ]

    async def test_unlogged_tables_are_none_of_ours(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE UNLOGGED TABLE u (id int)",
            "INSERT INTO u VALUES (1)",
            "CREATE TABLE t (id int)",
            "INSERT INTO t VALUES (1)",
        )
        (event,) = await stored.of(project, 1)
        assert event.type == "cdc.INSERT.t"

    async def test_virtual_columns_need_a_primary_key_and_are_told_so_when_they_are_made(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(person, "CREATE TABLE t (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, big text)")
        for refused in (
            "CREATE TABLE v (id int, twice int GENERATED ALWAYS AS (id * 2))",
            "ALTER TABLE t ADD COLUMN thrice int GENERATED ALWAYS AS (id * 3) VIRTUAL",
        ):
            with pytest.raises(FeatureNotSupported, match="has a virtual generated column and no primary key"):
                await run(person, refused)
        await run(
            person,
            "CREATE TABLE v (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL, big text, n int)",
            "ALTER TABLE v ALTER big SET STORAGE EXTERNAL",
            "INSERT INTO v (id, big, n) VALUES (1, repeat('x', 9000), 1)",
            "UPDATE v SET n = 2",
            "UPDATE v SET id = 3",
            "DELETE FROM v",
        )
        with pytest.raises(FeatureNotSupported):
            await run(person, "ALTER TABLE v DROP CONSTRAINT v_pkey")
        _, update, moved, delete = await stored.of(project, 4)
        assert (update.data.value, change_of(update).old) == ({"id": 1, "n": 2}, None)
        assert change_of(update).unavailable == ("big",)
        assert old_of(change_of(moved)) == {"id": 1}
        assert change_of(moved).changed == ("id",)
        assert (delete.data.value, change_of(delete).unavailable) == ({"id": 3}, ("big", "n"))


class TestProjects:
    async def test_a_new_one_is_captured_at_once_and_a_dropped_one_is_in_nobodys_way(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str, tenants: Tenants
    ) -> None:
        other = str(uuid4())
        await tenants.provision(other)
        async with await AsyncConnection.connect(tenants.psql_url(other), autocommit=True) as second:
            await run(second, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)", "UPDATE t SET id = 2")
        await tenants.drop(other)
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (3)")
        assert [event.data.value["id"] for event in await stored.of(project, 1)] == [3]
        assert [event.data.value["id"] for event in await stored.of(other, 2)] == [1, 2]

    async def test_one_that_was_there_before_is_published_with_its_tables(
        self, tenants: Tenants, project: str, person: AsyncConnection
    ) -> None:
        schema = schema_of(project)
        async with tenants.admin() as admin:
            await run(
                admin,
                f"ALTER PUBLICATION atlas_cdc DROP TABLES IN SCHEMA {schema}",
                "ALTER EVENT TRIGGER atlas_replica_identity DISABLE",
            )
            await run(person, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
            async with await AsyncConnection.connect(tenants.psql_url(project)) as busy:
                await busy.execute("UPDATE t SET id = 2")
                await tenants.publish()
                assert schema not in await published(admin), "its table is in use"
            await tenants.publish()
            assert schema in await published(admin)
            cursor = await admin.execute("SELECT relreplident FROM pg_class WHERE oid = %s::regclass", [f"{schema}.t"])
            assert await cursor.fetchone() == ("f",)
        await run(person, "UPDATE t SET id = 3")


async def published(admin: AsyncConnection) -> list[str]:
    cursor = await admin.execute(
        "SELECT nspname FROM pg_publication_namespace JOIN pg_namespace AS n ON n.oid = pnnspid"
    )
    return [name for (name,) in await cursor.fetchall()]


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


class TestServers:
    async def test_one_without_logical_decoding_is_told_so_and_serves_all_else(
        self, make_postgres: Callable[..., OwnPostgres], cdc_bus: EventBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        tenants = Tenants(make_postgres(wal_level="replica").url, secret=SECRET, other_databases=())
        await tenants.start()
        assert "wal_level of the tenants' Postgres is replica; set it to logical" in caplog.text
        project = str(uuid4())
        await tenants.provision(project)
        relay = Relay(tenants, cdc_bus, SETTINGS, Metrics())
        caplog.clear()
        await relay.start()

        async def told() -> bool:
            return "There are no events of tables: wal_level" in caplog.text

        await eventually(told)
        await relay.close()

    async def test_one_with_prepared_transactions_is_told_so(self, make_postgres: Callable[..., OwnPostgres]) -> None:
        server = make_postgres(max_prepared_transactions="3")
        async with await AsyncConnection.connect(server.url, autocommit=True) as admin:
            with pytest.raises(publication.NotPublishable, match="is 3; set it to 0 and restart"):
                await publication.require(admin)

    async def test_one_where_we_are_no_superuser_is_told_so(
        self, make_postgres: Callable[..., OwnPostgres], cdc_bus: EventBus
    ) -> None:
        server = make_postgres()
        async with await AsyncConnection.connect(server.url, autocommit=True) as admin:
            await run(admin, "CREATE ROLE owner", "ALTER DATABASE tenants OWNER TO owner", "SET ROLE owner")
            with pytest.raises(publication.NotPublishable, match="ATLAS_TENANT_DATABASE_URL must be a superuser's"):
                await publication.require(admin)

    async def test_it_stops_at_once_though_a_relay_listens(
        self, make_postgres: Callable[..., OwnPostgres], cdc_bus: EventBus
    ) -> None:
        server = make_postgres()
        tenants = Tenants(server.url, secret=SECRET, other_databases=())
        await tenants.start()
        relay = Relay(tenants, cdc_bus, SETTINGS, Metrics())
        await relay.start()
        await streaming(tenants)
        assert server.running
        server.running.ask_to_stop()
        await asyncio.to_thread(server.running.process.wait, 10)
        await relay.close()


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


async def test_what_fails_before_its_transaction_is_known_is_passed_in_growing_steps(
    tenants: Tenants, person: AsyncConnection, project: str
) -> None:
    await run(person, "SET synchronous_commit = on", "CREATE TABLE t (v text)")
    async with tenants.admin() as admin:
        name = await slot.claim(admin)
        await run(person, "INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 10000) AS i")
        strikes = Strikes()
        unread = Changes(name, None, most_bytes=1_000_000)
        for _ in range(STRIKES - 1):
            strikes.count(ProtocolError("x"), name, unread)
            await strikes.skip(admin)
        began, end = await slot.confirmed(admin, name)
        assert await slot.noted_gap(admin) is None
        places = [began]
        for _ in range(3):
            strikes.count(SqlError({"C": "XX000"}), name, unread)
            await strikes.skip(admin)
            places.append((await slot.confirmed(admin, name))[0])
        assert [after - before for before, after in pairwise(places)] == [2**16, 2**17, 2**18]
        assert places[-1] < end
        gap = await slot.noted_gap(admin)
        assert gap
        assert (gap.project_id, gap.reason) == (None, "undecodable (XX000)")
        assert (gap.since, gap.until) == (lsn_text(places[0]), lsn_text(places[-1])), "one gap while it is not told"
        strikes.count(SqlError({"C": "57P01"}), name, unread)
        elsewhere = Changes(name, None, most_bytes=1_000_000)
        elsewhere.take(Begin(1, 0, 1), {})
        strikes.count(ProtocolError("x"), name, elsewhere)
        await strikes.skip(admin)
        assert (await slot.confirmed(admin, name))[0] == places[-1], "another place counts anew"
    await forget_slots(tenants)


async def test_nothing_is_skipped_while_another_reads_and_no_gap_is_told(relay: Relay, tenants: Tenants) -> None:
    async with tenants.admin() as admin:
        name = await slot.claim(admin)
        strikes = Strikes()
        within = Changes(name, None, most_bytes=1_000_000)
        within.take(Begin((await slot.confirmed(admin, name))[1] + 10**6, 0, 1), {})
        for _ in range(STRIKES):
            strikes.count(TooManyTables("x"), name, within)
            await strikes.skip(admin)
        assert await slot.noted_gap(admin) is None


async def test_what_another_went_past_counts_anew(tenants: Tenants, person: AsyncConnection) -> None:
    async with tenants.admin() as admin:
        name = await slot.claim(admin)
        strikes, unread = Strikes(), Changes(name, None, most_bytes=1_000_000)
        for _ in range(STRIKES - 1):
            strikes.count(ProtocolError("x"), name, unread)
            await strikes.skip(admin)
        await run(person, "SET synchronous_commit = on", "CREATE TABLE t (v text)", "INSERT INTO t VALUES ('x')")
        moved = (await slot.confirmed(admin, name))[1]
        assert await slot.skip(admin, name, moved)
        strikes.count(ProtocolError("x"), name, unread)
        await strikes.skip(admin)
        assert await slot.noted_gap(admin) is None
    await forget_slots(tenants)
