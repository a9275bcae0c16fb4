"""A tenant against change data capture: forging, reading and stopping what is captured of others, and becoming us."""

import uuid
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
from psycopg import AsyncConnection

from server.cdc.relay import Relay
from server.postgres.tenants import Tenants, schema_of
from tests.fix_cdc import Stored, run, streaming

DENIED = """
CREATE PUBLICATION mine FOR TABLES IN SCHEMA {a}
ALTER PUBLICATION atlas_cdc DROP TABLES IN SCHEMA {a}
ALTER PUBLICATION atlas_cdc ADD TABLES IN SCHEMA {a}
ALTER PUBLICATION atlas_cdc SET (publish = '')
ALTER PUBLICATION atlas_cdc OWNER TO {a}
DROP PUBLICATION atlas_cdc
CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION evil()
ALTER EVENT TRIGGER atlas_replica_identity DISABLE
ALTER EVENT TRIGGER atlas_replica_identity OWNER TO {a}
DROP EVENT TRIGGER atlas_replica_identity
SET event_triggers = off
SET session_replication_role = replica
SET wal_level = minimal
SELECT atlas.replica_identity()
DO $$ BEGIN PERFORM atlas.replica_identity(); END $$
CREATE TRIGGER t BEFORE INSERT ON own EXECUTE FUNCTION atlas.replica_identity()
CREATE OR REPLACE FUNCTION atlas.replica_identity() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'
ALTER FUNCTION atlas.replica_identity() OWNER TO {a}
DROP FUNCTION atlas.replica_identity CASCADE
DROP SCHEMA atlas CASCADE
CREATE TABLE atlas.mine (i int)
SELECT * FROM atlas.cdc
UPDATE atlas.cdc SET slot = NULL
INSERT INTO atlas.cdc VALUES (false)
DO $$ BEGIN LOCK TABLE atlas.cdc; END $$
TRUNCATE atlas.cdc
SELECT * FROM atlas.cdc_held
DELETE FROM atlas.cdc_held
ALTER ROLE {a} CONNECTION LIMIT 20
SELECT atlas.pg_get_wal_block_info('0/1000000', '0/2000000')
SELECT pg_logical_emit_message(true, 'atlas.cause', '{}')
SELECT pg_logical_emit_message(false, 'atlas.cause', '{}', true)
SELECT pg_create_logical_replication_slot('mine', 'pgoutput')
SELECT pg_create_logical_replication_slot('mine', 'test_decoding')
SELECT pg_create_physical_replication_slot('mine')
SELECT pg_copy_logical_replication_slot('{slot}', 'mine')
SELECT pg_drop_replication_slot('{slot}')
SELECT pg_replication_slot_advance('{slot}', 'FFFFFFFF/0')
SELECT pg_logical_slot_get_changes('{slot}', NULL, NULL)
SELECT pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, 'proto_version', '4', 'publication_names', 'atlas_cdc')
SELECT pg_sync_replication_slots()
SELECT pg_replication_origin_create('mine')
SELECT pg_replication_origin_session_setup('mine')
SELECT pg_log_standby_snapshot()
SELECT * FROM pg_replication_slots
SELECT * FROM pg_stat_replication
SELECT * FROM pg_publication_tables
SELECT * FROM pg_ls_logicalsnapdir()
SELECT pg_terminate_backend(active_pid) FROM pg_get_replication_slots()
SELECT pg_advisory_lock(1635017572)
CREATE TABLE {v}.forged (i int)
ALTER TABLE own SET SCHEMA {v}
""".strip().split("\n")


@pytest.fixture
async def victim(tenants: Tenants) -> AsyncIterator[str]:
    project_id = str(uuid.uuid4())
    await tenants.provision(project_id)
    yield project_id
    await tenants.drop(project_id)


async def test_what_is_ours_is_refused(
    relay: Relay, stored: Stored, person: AsyncConnection, project: str, victim: str, tenants: Tenants
) -> None:
    await run(person, "CREATE TABLE own (id int)", "CREATE FUNCTION evil() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    async with tenants.admin() as admin:
        cursor = await admin.execute("SELECT slot FROM atlas.cdc")
        (slot,) = await cursor.fetchone() or ("",)
    words = {"{a}": schema_of(project), "{v}": schema_of(victim), "{slot}": slot}
    for sql in DENIED:
        for word, meaning in words.items():
            sql = sql.replace(word, meaning)
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.CantChangeRuntimeParam)):
            await run(person, sql)
    await run(person, "INSERT INTO own VALUES (1)", "UPDATE own SET id = 2")
    assert [event.type for event in await stored.of(project, 2)] == ["cdc.INSERT.own", "cdc.UPDATE.own"]


async def test_a_tenants_role_cannot_replicate(tenants: Tenants, project: str) -> None:
    for mode in ("database", "true"):
        with pytest.raises(
            psycopg.OperationalError, match=r"permission denied|no pg_hba.conf entry|Peer authentication"
        ):
            await AsyncConnection.connect(f"{tenants.psql_url(project)}&replication={mode}")


async def test_nothing_that_a_tenant_makes_is_run_by_the_event_trigger(person: AsyncConnection, project: str) -> None:
    """It runs as a superuser when a table is made."""
    schema = schema_of(project)
    evil = f"BEGIN EXECUTE 'ALTER ROLE {schema} SUPERUSER'; RETURN 'f'; END"
    await run(
        person,
        f"CREATE FUNCTION format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS $$ {evil} $$",
        f"CREATE FUNCTION format(text, name, name, text) RETURNS text LANGUAGE plpgsql AS $$ {evil} $$",
        f"CREATE FUNCTION pg_event_trigger_ddl_commands() RETURNS text LANGUAGE plpgsql AS $$ {evil} $$",
        "CREATE FUNCTION equal(text, text) RETURNS bool LANGUAGE plpgsql AS"
        f" $$ BEGIN EXECUTE 'ALTER ROLE {schema} SUPERUSER'; RETURN true; END $$",
        *(f"CREATE OPERATOR {sign} (LEFTARG = text, RIGHTARG = text, FUNCTION = equal)" for sign in ("=", "<>", "~")),
        "CREATE TABLE pg_class (oid int)",
        "CREATE TABLE pg_attribute (attrelid int)",
        f"SET search_path = {schema}, pg_catalog",
        f"""CREATE TABLE "x; ALTER ROLE {schema[:20]} SUPERUSER" (id int)""",
        """CREATE TABLE "'); SELECT pg_sleep(1); --" (id int, "a""b" int)""",
        """ALTER TABLE "'); SELECT pg_sleep(1); --" REPLICA IDENTITY NOTHING""",
    )
    cursor = await person.execute("SHOW is_superuser")
    assert await cursor.fetchone() == ("off",)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await run(person, "CREATE ROLE x")


async def test_a_table_in_a_tenants_hands_holds_up_nobody(
    make_relay: Callable[[], Relay], stored: Stored, person: AsyncConnection, victim: str, tenants: Tenants
) -> None:
    await make_relay().start()
    await streaming(tenants)
    await run(person, "BEGIN", "CREATE TABLE t (id int)", "ALTER TABLE t REPLICA IDENTITY NOTHING", "LOCK TABLE t")
    other = str(uuid.uuid4())
    await tenants.provision(other)
    async with await AsyncConnection.connect(tenants.psql_url(victim), autocommit=True) as neighbour:
        await run(neighbour, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)", "DROP TABLE t")
    await stored.of(victim, 1)
    await tenants.drop(other)
    await run(person, "ROLLBACK")


async def test_what_one_tenant_does_shows_in_no_others_events(
    relay: Relay, stored: Stored, person: AsyncConnection, project: str, victim: str, tenants: Tenants
) -> None:
    """Subtransactions that fail, and tables that come and go."""
    await run(person, "CREATE TABLE t (id int)")
    await run(
        person,
        "DO $$ BEGIN FOR i IN 1..300 LOOP BEGIN INSERT INTO t VALUES (i); IF i % 2 = 0 THEN RAISE division_by_zero;"
        " END IF; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$",
        "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('CREATE TABLE t%s (id int)', i);"
        " EXECUTE format('INSERT INTO t%s VALUES (1)', i); EXECUTE format('DROP TABLE t%s', i); END LOOP; END $$",
    )
    async with await AsyncConnection.connect(tenants.psql_url(victim), autocommit=True) as neighbour:
        await run(neighbour, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (7)")
    (event,) = await stored.of(victim, 1)
    assert event.data.value == {"id": 7}
    assert len(await stored.of(project, 450)) == 450
