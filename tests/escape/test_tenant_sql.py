"""One tenant's SQL against another tenant, the server and us: every attack we know, through the real atlas.db.query.

The attacker has a project like any other. Each statement must be refused, and afterwards the victim's table is what it
was, the attacker's next call works, and so does ours.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import orjson
import psycopg
import pytest

from engines.contract import HostError
from server.host.database import Database
from server.postgres.tenants import ROLE_SETTINGS, Tenants, schema_of

SECRET = "a secret of the victim"


@pytest.fixture(scope="module")
def pair(tenants: Tenants) -> Iterator[tuple[str, str]]:
    """Attacker and victim, each with a table `own`; the victim's holds a secret, a view, a function and a sequence."""

    async def furnish(attacker: str, victim: str) -> None:
        database = Database(tenants)
        for project in (attacker, victim):
            await tenants.provision(project)
            await database.query(project, "CREATE TABLE own (id serial PRIMARY KEY, v text)", (), timeout_ms=5_000)
        for sql in (
            f"INSERT INTO own (v) VALUES ($${SECRET}$$)",
            f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT $${SECRET}$$'",
            "CREATE TYPE mood AS ENUM ('sad', 'ok')",
            "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
            f"CREATE VIEW w AS SELECT $${SECRET}$$ AS hidden",
        ):
            await database.query(victim, sql, (), timeout_ms=5_000)
        await database.close()

    ids = str(uuid.uuid4()), str(uuid.uuid4())
    with asyncio.Runner() as runner:
        runner.run(furnish(*ids))
        yield ids
        for project in ids:
            runner.run(tenants.drop(project))


@pytest.fixture
async def attack(database: Database, pair: tuple[str, str], tenants: Tenants) -> AsyncIterator["Attack"]:
    found = Attack(database, *pair)
    yield found
    victims = orjson.loads(await database.query(found.victim, "SELECT v FROM own", (), timeout_ms=5_000))
    assert victims == [{"v": SECRET}]
    await tenants.provision(found.attacker)
    assert await found.rows("SELECT 1 AS alive") == [{"alive": 1}]


class Attack:
    """Runs the attacker's SQL, in which {v} is the victim's schema and role, {a} the attacker's."""

    def __init__(self, database: Database, attacker: str, victim: str) -> None:
        self.database, self.attacker, self.victim = database, attacker, victim

    def written(self, sql: str) -> str:
        return sql.replace("{v}", schema_of(self.victim)).replace("{a}", schema_of(self.attacker))

    async def rows(self, sql: str) -> list[dict[str, object]]:
        answer = await self.database.query(self.attacker, self.written(sql), (), timeout_ms=5_000)
        found: list[dict[str, object]] = orjson.loads(answer)
        return found

    async def refused(self, sql: str) -> HostError:
        with pytest.raises(HostError) as caught:
            await self.rows(sql)
        assert SECRET not in caught.value.message
        return caught.value


DENIED = """
SELECT * FROM {v}.own
TABLE {v}.own
INSERT INTO {v}.own (v) VALUES ('x')
UPDATE {v}.own SET v = 'x'
DELETE FROM {v}.own
TRUNCATE {v}.own
DROP TABLE {v}.own
ALTER TABLE {v}.own ADD COLUMN x int
LOCK TABLE {v}.own
COMMENT ON TABLE {v}.own IS 'x'
SELECT {v}.f()
SELECT * FROM {v}.w
SELECT nextval('{v}.own_id_seq')
SELECT setval('{v}.own_id_seq', 1)
SELECT last_value FROM {v}.own_id_seq
CREATE TABLE {v}.x (i int)
CREATE FUNCTION {v}.f() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE TABLE x (LIKE {v}.own)
CREATE TABLE x () INHERITS ({v}.own)
CREATE TABLE x (i int REFERENCES {v}.own (id))
CREATE VIEW x AS SELECT * FROM {v}.own
CREATE TABLE x (r {v}.own)
CREATE RULE r AS ON SELECT TO {v}.own DO INSTEAD SELECT 1
CREATE TRIGGER t BEFORE INSERT ON {v}.own EXECUTE FUNCTION suppress_redundant_updates_trigger()
CREATE POLICY p ON {v}.own
CREATE INDEX ON {v}.own (v)
CREATE STATISTICS ON id, v FROM {v}.own
ANALYZE (VERBOSE) {v}.own, {a}.missing
GRANT ALL ON {v}.own TO {a}
GRANT {v} TO {a}
GRANT {a} TO {v} WITH ADMIN OPTION
ALTER SCHEMA {a} OWNER TO {v}
ALTER SCHEMA {a} RENAME TO mine
ALTER SCHEMA {v} RENAME TO mine
DROP SCHEMA {v} CASCADE
DROP SCHEMA {a} CASCADE
ALTER TABLE own OWNER TO {v}
REASSIGN OWNED BY {v} TO {a}
DROP OWNED BY {v}
DO $$ BEGIN EXECUTE 'SELECT * FROM {v}.own'; END $$
SELECT query_to_xml('SELECT * FROM {v}.own', true, true, '')
SELECT table_to_xml('{v}.own', true, true, '')
SELECT schema_to_xml('{v}', true, true, '')
SELECT database_to_xml(true, true, '')
SELECT cursor_to_xml('x', 1, true, true, '')
SELECT ts_stat('SELECT v::tsvector FROM {v}.own')
SELECT has_table_privilege('{v}.own', 'SELECT')
SELECT '{v}.own'::regclass
SELECT '{v}.f'::regproc
SET ROLE {v}
SET ROLE postgres
SET SESSION AUTHORIZATION {v}
SET SESSION AUTHORIZATION postgres
DO $$ BEGIN EXECUTE 'SET ROLE {v}'; END $$
DO $$ BEGIN EXECUTE 'SET SESSION AUTHORIZATION {v}'; END $$
DO $$ BEGIN EXECUTE 'SET session_replication_role = replica'; END $$
DO $$ BEGIN EXECUTE 'SET temp_file_limit = -1'; END $$
DO $$ BEGIN EXECUTE 'SET log_min_messages = debug5'; END $$
SELECT set_config('role', '{v}', false)
SELECT set_config('search_path', '{v}', false)
ALTER ROLE {v} PASSWORD 'x'
ALTER ROLE {v} SET search_path = x
ALTER ROLE {a} SUPERUSER
ALTER ROLE {a} CREATEROLE
ALTER ROLE {a} CREATEDB
ALTER ROLE {a} REPLICATION
ALTER ROLE {a} BYPASSRLS
ALTER ROLE {a} INHERIT
ALTER ROLE {a} CONNECTION LIMIT -1
ALTER ROLE {a} NOLOGIN
ALTER ROLE {a} RENAME TO mine
ALTER ROLE {a} SET temp_file_limit = '-1'
ALTER ROLE {a} SET log_min_messages = debug5
ALTER ROLE {a} SET session_preload_libraries = 'x'
DROP ROLE {a}
DROP ROLE {v}
CREATE ROLE x
CREATE USER x
CREATE DATABASE x
CREATE SCHEMA x
CREATE TABLESPACE x LOCATION '/tmp'
CREATE EXTENSION dblink
CREATE EXTENSION file_fdw
CREATE EXTENSION plperlu
CREATE LANGUAGE plpython3u
CREATE FUNCTION x() RETURNS int LANGUAGE c AS 'x'
CREATE FUNCTION x() RETURNS int LANGUAGE internal AS 'x'
CREATE FOREIGN DATA WRAPPER x
CREATE SERVER x FOREIGN DATA WRAPPER y
CREATE USER MAPPING FOR {v} SERVER x
CREATE PUBLICATION x FOR TABLE own
CREATE PUBLICATION x FOR ALL TABLES
CREATE SUBSCRIPTION x CONNECTION 'host=127.0.0.1' PUBLICATION y
CREATE EVENT TRIGGER x ON ddl_command_start EXECUTE FUNCTION f()
CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION int4out(internal))
CREATE ACCESS METHOD x TYPE TABLE HANDLER heap_tableam_handler
CREATE CAST (text AS int) WITH INOUT
CREATE TABLE public.x (i int)
CREATE FUNCTION public.now() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE FUNCTION pg_catalog.evil() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE OPERATOR pg_catalog.+ (LEFTARG = int, RIGHTARG = text, FUNCTION = f)
CREATE TEMP TABLE x (i int)
CREATE TEMP TABLE pg_class (i int)
ALTER DATABASE postgres SET search_path = x
ALTER SYSTEM SET log_statement = 'all'
ALTER FUNCTION pg_catalog.now() OWNER TO {a}
GRANT EXECUTE ON FUNCTION pg_sleep(double precision) TO {a}
GRANT SELECT ON pg_class TO {a}
GRANT CONNECT ON DATABASE postgres TO {a}
ALTER DEFAULT PRIVILEGES FOR ROLE {v} GRANT ALL ON TABLES TO {a}
SECURITY LABEL ON TABLE {v}.own IS 'x'
COPY own FROM PROGRAM 'id'
COPY own TO PROGRAM 'cat'
COPY own FROM '/etc/passwd'
COPY own TO '/tmp/x'
COPY (SELECT 1) TO STDOUT
COPY own FROM STDIN
COPY {v}.own TO STDOUT
LOAD 'auto_explain'
CHECKPOINT
SELECT pg_read_file('/etc/passwd')
SELECT pg_read_binary_file('PG_VERSION')
SELECT pg_ls_dir('.')
SELECT pg_stat_file('PG_VERSION')
SELECT pg_ls_logdir()
SELECT pg_current_logfile()
SELECT pg_hba_file_rules()
SELECT pg_reload_conf()
SELECT pg_rotate_logfile()
SELECT pg_switch_wal()
SELECT pg_current_wal_lsn()
SELECT pg_logical_emit_message(true, 'altbase.cause', '{}')
SELECT pg_create_logical_replication_slot('x', 'pgoutput')
SELECT pg_drop_replication_slot('x')
SELECT pg_export_snapshot()
SELECT pg_terminate_backend(1)
SELECT pg_cancel_backend(1)
SELECT pg_log_backend_memory_contexts(1)
SELECT pg_sleep(1)
SELECT pg_sleep_for('1 s')
SELECT pg_sleep_until(now() + interval '1 s')
SELECT pg_advisory_lock(1)
SELECT pg_try_advisory_lock(1634692193)
SELECT pg_advisory_xact_lock_shared(1)
SELECT pg_advisory_unlock_all()
SELECT pg_notify('x', 'y')
SELECT lo_creat(-1)
SELECT lo_import('/etc/passwd')
SELECT lo_from_bytea(0, 'x')
SELECT lo_get(1)
SELECT loread(1, 1)
SELECT binary_upgrade_set_next_pg_type_oid(1)
SELECT dblink('host=127.0.0.1', 'SELECT 1')
LISTEN x
NOTIFY x
BEGIN
COMMIT
SET statement_timeout = 0
SET work_mem = '2GB'
RESET ALL
DISCARD ALL
PREPARE TRANSACTION 'x'
SELECT 1; SELECT 2
SELECT 1; DROP TABLE own
COMMIT; DROP TABLE own
""".strip().split("\n")


@pytest.mark.parametrize("sql", DENIED)
async def test_denied(attack: Attack, sql: str) -> None:
    found = await attack.refused(sql)
    assert found.code.startswith(("sql_", "bytes_limit"))


CATALOG = """
pg_class pg_attribute pg_attrdef pg_proc pg_type pg_namespace pg_roles pg_user pg_group pg_auth_members pg_authid
pg_shadow pg_database pg_db_role_setting pg_default_acl pg_depend pg_shdepend pg_description pg_shdescription pg_enum
pg_constraint pg_index pg_indexes pg_inherits pg_rewrite pg_rules pg_views pg_matviews pg_tables pg_trigger pg_policy
pg_policies pg_sequence pg_sequences pg_statistic pg_stats pg_stats_ext pg_statistic_ext pg_stat_activity
pg_stat_all_tables pg_stat_user_tables pg_stat_database pg_stat_replication pg_stat_ssl pg_locks pg_cursors
pg_prepared_statements pg_prepared_xacts pg_publication pg_publication_tables pg_publication_rel pg_replication_slots
pg_subscription pg_largeobject pg_largeobject_metadata pg_file_settings pg_hba_file_rules pg_ident_file_mappings
pg_shmem_allocations pg_backend_memory_contexts pg_config pg_extension pg_language pg_foreign_server pg_user_mappings
pg_tablespace pg_operator pg_cast pg_collation pg_event_trigger pg_seclabels pg_init_privs pg_parameter_acl
"""


@pytest.mark.parametrize("relation", CATALOG.split())
async def test_the_catalog_is_closed(attack: Attack, relation: str) -> None:
    assert (await attack.refused(f"SELECT * FROM pg_catalog.{relation}")).code == "sql_42501"


TELLING = """
pg_get_functiondef(1) pg_get_viewdef(1) pg_get_ruledef(1) pg_get_triggerdef(1) pg_get_indexdef(1)
pg_get_constraintdef(1) pg_get_userbyid(10) pg_describe_object(1259,1,0) pg_identify_object(1259,1,0)
obj_description(1,'pg_class') col_description(1,1) shobj_description(1,'pg_database')
pg_relation_size(1) pg_total_relation_size(1) pg_table_size(1)
pg_database_size('postgres') pg_tablespace_size('pg_default') pg_relation_filepath(1) pg_filenode_relation(0,1)
pg_stat_get_activity(NULL) pg_stat_get_backend_activity(1) pg_stat_get_backend_idset() pg_stat_get_live_tuples(1)
pg_stat_get_db_numbackends(1) pg_lock_status() pg_blocking_pids(1) pg_partition_tree(1259) pg_get_acl(1259,1,0)
pg_prepared_xact() pg_get_replication_slots() pg_get_publication_tables('x') pg_listening_channels()
pg_get_object_address('table','{x}','{}') pg_control_system() pg_postmaster_start_time() pg_tablespace_databases(1663)
"""


@pytest.mark.parametrize("call", TELLING.split())
async def test_functions_that_tell_about_others_are_closed(attack: Attack, call: str) -> None:
    assert (await attack.refused(f"SELECT {call}")).code == "sql_42501"


async def test_information_schema_shows_only_what_is_the_attackers(attack: Attack) -> None:
    tables = await attack.rows(
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_name = 'own'"
    )
    assert [row["table_schema"] for row in tables] == [schema_of(attack.attacker)]
    columns = await attack.rows("SELECT column_name FROM information_schema.columns WHERE table_name = 'own'")
    assert [row["column_name"] for row in columns] == ["id", "v"]
    views = await attack.rows(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'information_schema'"
    )
    assert len(views) > 50
    for view in views:
        sql = f"SELECT t::text FROM information_schema.{view['table_name']} AS t WHERE t::text ~ '{{v}}|{SECRET}'"
        with suppress(HostError):  # closed as a whole
            assert (view, await attack.rows(sql)) == (view, [])


async def test_the_closed_catalog_is_not_in_the_way(attack: Attack) -> None:
    for sql in (
        "CREATE TABLE a (id serial PRIMARY KEY, parent int REFERENCES a (id), j jsonb, t timestamptz DEFAULT now())",
        "CREATE TYPE color AS ENUM ('red', 'green')",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        "ALTER TABLE a ADD COLUMN c color DEFAULT 'red', ADD COLUMN p positive, ADD CHECK (id < 1000)",
        "CREATE INDEX ON a USING gin (j)",
        "CREATE UNIQUE INDEX CONCURRENTLY ON a (t)",
        "CREATE VIEW av AS SELECT id, c FROM a",
        "CREATE MATERIALIZED VIEW am AS SELECT count(*) FROM a",
        "REFRESH MATERIALIZED VIEW am",
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.t := now(); RETURN NEW; END'",
        "CREATE TRIGGER touch BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION touch()",
        "INSERT INTO a (j, p) VALUES ('{\"x\": 1}', 5)",
        "UPDATE a SET j = j || '{\"y\": 2}' WHERE j ->> 'x' = '1'",
        "WITH moved AS (DELETE FROM a RETURNING *) SELECT * FROM moved JOIN av USING (id)",
        "EXPLAIN (ANALYZE, BUFFERS) SELECT * FROM a WHERE id = 1",
        "VACUUM ANALYZE a",
        "SELECT current_user, current_schema, pg_typeof(1), gen_random_uuid(), pg_size_pretty(1024::bigint)",
        "SELECT nextval(pg_get_serial_sequence('a', 'id'))",
        "SELECT to_tsvector('english', 'cats') @@ to_tsquery('cat'), 'b' ~ 'B|b', now() AT TIME ZONE 'Europe/Berlin'",
        "DROP TABLE a CASCADE",
        "DROP FUNCTION touch",
        "DROP TYPE color",
        "DROP TYPE pair",
        "DROP DOMAIN positive",
    ):
        await attack.rows(sql)


async def test_a_role_cannot_loosen_its_limits_for_our_sessions(attack: Attack, tenants: Tenants) -> None:
    for setting in (
        *("statement_timeout = 0", "search_path = x", "lock_timeout = 0", "client_encoding = 'SQL_ASCII'"),
        *("DateStyle = 'German'", "client_min_messages = 'debug5'", "default_transaction_read_only = on"),
        "role = '{v}'",
    ):
        await attack.rows(f"ALTER ROLE {{a}} SET {setting}")
    fresh = Attack(Database(tenants), attack.attacker, attack.victim)
    try:
        for name, expected in (
            ("statement_timeout", "65s"), ("search_path", schema_of(attack.attacker)), ("lock_timeout", "10s"),
            ("client_encoding", "UTF8"), ("DateStyle", "ISO, MDY"), ("default_transaction_read_only", "off"),
        ):  # fmt: skip
            assert list((await fresh.rows(f"SHOW {name}"))[0].values()) == [expected]
        await fresh.rows("ALTER ROLE {a} RESET ALL")
        for name, value in ROLE_SETTINGS.items():
            assert list((await fresh.rows(f"SHOW {name}"))[0].values()) == [value]
    finally:
        await fresh.database.close()


async def test_a_changed_password_does_not_lock_us_out(attack: Attack, tenants: Tenants) -> None:
    await attack.rows("ALTER ROLE {a} PASSWORD 'mine'")
    fresh = Attack(Database(tenants), attack.attacker, attack.victim)
    try:
        assert await fresh.rows("SELECT 1 AS v") == [{"v": 1}]
    finally:
        await fresh.database.close()


async def test_a_role_cannot_give_its_own_rights_away_or_up(attack: Attack) -> None:
    await attack.rows("GRANT USAGE ON SCHEMA {a} TO {v}")  # Postgres warns that nothing was granted
    sql = attack.written("SELECT * FROM {a}.own")
    with pytest.raises(HostError, match="permission denied for schema"):
        await attack.database.query(attack.victim, sql, (), timeout_ms=5_000)
    await attack.rows("DROP OWNED BY CURRENT_USER")
    await attack.rows("CREATE TABLE own (id serial PRIMARY KEY, v text)")


async def test_a_statement_inside_a_function_cannot_outlive_its_session(attack: Attack) -> None:
    for step in ("SET statement_timeout = 0", "SET work_mem = '2GB'", "SET search_path = {v}", "LISTEN x"):
        await attack.rows(f"DO $$ BEGIN {step}; END $$")
    assert await attack.rows("SHOW statement_timeout") == [{"statement_timeout": "65s"}]
    assert await attack.rows("SHOW work_mem") == [{"work_mem": "4MB"}]


async def test_no_other_database_lets_a_tenant_in(attack: Attack, tenants: Tenants) -> None:
    for name in ("postgres", "template1"):
        url = tenants.psql_url(attack.attacker).replace(f"/{tenants.database}?", f"/{name}?")
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            await psycopg.AsyncConnection.connect(url)


async def test_people_with_the_projects_url_are_held_by_the_same_walls(attack: Attack, tenants: Tenants) -> None:
    async with await psycopg.AsyncConnection.connect(tenants.psql_url(attack.attacker), autocommit=True) as person:
        cursor = await person.execute("SELECT count(*) FROM own")
        assert await cursor.fetchone() == (0,)
        for sql in (
            f"SELECT * FROM {schema_of(attack.victim)}.own",
            "SELECT * FROM pg_class",
            "CREATE TABLE public.x ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await person.execute(sql)


async def test_a_flood_of_notices_does_not_reach_us(attack: Attack) -> None:
    await attack.rows("DO $$ BEGIN FOR i IN 1..20000 LOOP RAISE NOTICE '%', repeat('x', 1000); END LOOP; END $$")


async def test_an_error_as_large_as_a_value_can_be_is_cut(attack: Attack) -> None:
    small = await attack.refused("DO $$ BEGIN RAISE EXCEPTION '%', repeat('x', 100000); END $$")
    assert small.code == "sql_P0001"
    assert len(small.message) <= 2_000
    assert (
        await attack.refused("DO $$ BEGIN RAISE EXCEPTION '%', repeat('x', 50000000); END $$")
    ).code == "bytes_limit"
