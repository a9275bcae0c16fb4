"""Whose changes are captured: every kind of table a tenant can make, in every project."""

from uuid import uuid4

import pytest
from psycopg import AsyncConnection
from psycopg.errors import FeatureNotSupported

from server.cdc.relay import Relay
from server.events.types import unescape
from server.postgres.tenants import Tenants, schema_of
from tests.fix_cdc import Stored, change_of, old_of, run


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
