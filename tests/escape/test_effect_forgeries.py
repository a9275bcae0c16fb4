"""A tenant against what runs leave in the tenants database: causes, events and marks that are not its own to write.

The attacker may call what the server calls, in the same session. What it cannot make is a seal, and what it cannot
do is reach the tables.
"""

from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import AsyncConnection

from engines.contract import HostError
from server.events import cause
from server.events.envelope import Cause
from server.events.publisher import Publisher
from server.events.run_outbox import relay
from server.host.api import HostApi, InvocationHost
from server.host.origin import Origin
from server.postgres.effects import MAX_CAUSE_BYTES
from server.postgres.tenants import Tenants, schema_of
from tests.fix_effects import LIMITS, SETTINGS, Decoded, ask, begin, stored, waiting

RUN = "11111111-1111-4111-8111-111111111111"
TRIGGER = "22222222-2222-4222-8222-222222222222"
ORIGIN = Origin(run_id=RUN, event_id="e", trigger_id=TRIGGER, depth=7)
FORGED = cause.told(Cause(run_id=RUN, depth=1))

TABLES = ("key", "outbox", "mark")
FUNCTIONS = ("cause", "publish", "mark", "told", "tell")
PURPOSES = ("cause", "event", "mark", "told", "tell")


@pytest.fixture
async def attacker(hosts: HostApi, project: str) -> AsyncIterator[InvocationHost]:
    """A run of the attacker; after the test there is nothing of it in the outbox."""
    found = hosts.for_invocation(project, LIMITS, origin=ORIGIN)
    await ask(found, "db.query", "CREATE TABLE own (v text)")
    yield found
    assert await ask(found, "db.query", "SELECT 1 AS alive") == [{"alive": 1}]


async def refused(host: InvocationHost, sql: str, *params: object) -> str:
    """The code, the same for a query and within a transaction."""
    with pytest.raises(HostError) as caught:
        await ask(host, "db.query", sql, params)
    held = await begin(host)
    with pytest.raises(HostError) as within:
        await ask(host, "tx.query", 1, sql, params)
    await held
    assert within.value.code == caught.value.code
    return caught.value.code


STATEMENTS = [
    *(
        "SELECT * FROM {t}",
        "TABLE {t}",
        "INSERT INTO {t} DEFAULT VALUES",
        "UPDATE {t} SET role = 'x'",
        "DELETE FROM {t}",
    ),
    *(
        "TRUNCATE {t}",
        "LOCK TABLE {t}",
        "DROP TABLE {t}",
        "ALTER TABLE {t} ADD COLUMN x int",
        "CREATE INDEX ON {t} (role)",
    ),
    *(
        "ALTER TABLE {t} DISABLE TRIGGER ALL",
        "ALTER TABLE {t} OWNER TO CURRENT_USER",
        "GRANT ALL ON {t} TO CURRENT_USER",
    ),
    *(
        "CREATE TABLE child () INHERITS ({t})",
        "CREATE POLICY p ON {t}",
        "CREATE RULE r AS ON INSERT TO {t} DO INSTEAD NOTHING",
    ),
    "CREATE TRIGGER t BEFORE INSERT ON {t} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE VIEW seen AS SELECT * FROM {t}",
]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("sql", STATEMENTS)
async def test_the_tables_are_out_of_reach(attacker: InvocationHost, sql: str, table: str) -> None:
    assert await refused(attacker, sql.replace("{t}", f"atlas_kept.{table}")) in ("sql_42501", "sql_42703")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT nextval('atlas_kept.outbox_sequence_seq')",
        "SELECT setval('atlas_kept.outbox_sequence_seq', 1)",
        "CREATE TABLE atlas_kept.mine (n int)",
        "CREATE FUNCTION atlas_run.cause(text, text) RETURNS void LANGUAGE sql AS ''",
        "CREATE OR REPLACE FUNCTION atlas_run.cause(text text, seal bytea) RETURNS pg_lsn LANGUAGE sql RETURN NULL",
        "ALTER FUNCTION atlas_run.cause(text, bytea) SECURITY INVOKER",
        "ALTER FUNCTION atlas_run.publish(text, bytea) RESET search_path",
        "DROP FUNCTION atlas_run.cause(text, bytea)",
        "DROP SCHEMA atlas_run CASCADE",
        "SELECT atlas_kept.require('cause', 'x', '\\x00')",
        "SELECT pg_logical_emit_message(true, 'atlas.cause', 'x')",
        "SELECT pg_logical_emit_message(true, 'atlas.cause', '\\x00'::bytea)",
        "SELECT pg_logical_emit_message(false, 'atlas.cause', 'x', true)",
        "SELECT pg_try_advisory_xact_lock(1635019887)",
    ],
)
async def test_what_is_not_for_tenants(attacker: InvocationHost, sql: str) -> None:
    assert await refused(attacker, sql) == "sql_42501"


@pytest.mark.parametrize("function", FUNCTIONS[1:])
class TestSeals:
    @pytest.mark.parametrize("seal", ["\\x", "\\x00", "\\x" + "00" * 32, None])
    async def test_none_that_is_made_up(
        self, attacker: InvocationHost, admin: AsyncConnection, function: str, seal: str | None
    ) -> None:
        sql = f"SELECT atlas_run.{function}($1, $2::bytea)"
        if seal is not None:
            assert await refused(attacker, sql, FORGED, seal) == "sql_42501"
        else:
            await ask(attacker, "db.query", sql, [FORGED, seal])
        assert await waiting(admin) == 0

    async def test_none_of_another_project_or_for_another_purpose(
        self, attacker: InvocationHost, tenants: Tenants, admin: AsyncConnection, function: str
    ) -> None:
        purpose = dict(zip(FUNCTIONS, PURPOSES, strict=True))[function]
        own, victim = schema_of(attacker._project_id), schema_of(RUN)
        stolen = [tenants.sealer.seal(purpose, victim, FORGED)]
        stolen += [tenants.sealer.seal(other, own, FORGED) for other in PURPOSES if other != purpose]
        stolen += [tenants.sealer.seal(purpose, own, FORGED + " ")]
        for seal in stolen:
            sql = f"SELECT atlas_run.{function}($1, $2::bytea)"
            assert await refused(attacker, sql, FORGED, "\\x" + seal.hex()) == "sql_42501"
        assert await waiting(admin) == 0

    async def test_a_session_that_is_not_ours_is_refused_alike(
        self, attacker: InvocationHost, tenants: Tenants, function: str
    ) -> None:
        with psycopg.connect(tenants.psql_url(attacker._project_id), autocommit=True) as psql:
            for before in ("SELECT 1", "SET search_path = own", "SET client_encoding = 'LATIN1'", "SET ROLE NONE"):
                psql.execute(before)
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    psql.execute(f"SELECT atlas_run.{function}(%s, %s)", [FORGED, b"\0" * 32])


class TestCauses:
    """Their seal is part of the message, and looked at by whoever reads it."""

    @pytest.mark.parametrize(
        ("told", "seal"),
        [
            *((FORGED, seal) for seal in ("\\x", "\\x00", "\\x" + "00" * 31, "\\x" + "00" * 33, None)),
            *(("x" * (MAX_CAUSE_BYTES + 1), "\\x" + "00" * 32), (None, "\\x" + "00" * 32)),
        ],
    )
    async def test_none_that_could_be_none(
        self, attacker: InvocationHost, decoded: Decoded, told: str | None, seal: str | None
    ) -> None:
        assert await refused(attacker, "SELECT atlas_run.cause($1, $2::bytea)", told, seal) == "sql_42501"
        assert await decoded.lines() == []

    async def test_one_that_is_made_up_or_stolen_is_none(
        self, attacker: InvocationHost, decoded: Decoded, tenants: Tenants
    ) -> None:
        """It is told, after that of the run, and believed by nobody."""
        own, victim = schema_of(attacker._project_id), schema_of(RUN)
        seals = [b"\0" * 32, tenants.sealer.seal("cause", victim, FORGED), tenants.sealer.seal("cause", own, "x")]
        seals += [tenants.sealer.seal(other, own, FORGED) for other in PURPOSES[1:]]
        for seal in seals:
            await ask(attacker, "db.query", "SELECT atlas_run.cause($1, $2::bytea)", [FORGED, "\\x" + seal.hex()])
            told = [line.partition("content:")[2] for line in await decoded.lines() if line.startswith("message")]
            found = [cause.read(content.encode(), own, tenants.sealer) for content in told]
            assert [each and each.depth for each in found] == [7, None]


class TestWhatTheAttackerSees:
    async def test_no_seal_is_seen_by_its_triggers(self, attacker: InvocationHost, admin: AsyncConnection) -> None:
        for sql in (
            "CREATE TABLE heard (q text)",
            "CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO heard VALUES (current_query()); RETURN NEW; END $$",
            "CREATE TRIGGER hears BEFORE INSERT ON own FOR EACH ROW EXECUTE FUNCTION hear()",
            "CREATE CONSTRAINT TRIGGER later AFTER INSERT ON own DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
            " EXECUTE FUNCTION hear()",
        ):
            await ask(attacker, "db.query", sql)
        held = await begin(attacker)
        await ask(attacker, "events.publish", "a", 1, None, 1)
        await ask(attacker, "tx.query", 1, "INSERT INTO own VALUES ('x')")
        await ask(attacker, "tx.commit", 1)
        await held
        await ask(attacker, "db.query", "INSERT INTO own VALUES ('x')")
        heard = [row["q"] for row in await ask(attacker, "db.query", "SELECT q FROM heard")]
        assert len(heard) == 4
        assert set(heard) <= {"INSERT INTO own VALUES ('x')", "COMMIT", None}  # None: as the transaction ends by itself
        await admin.execute("DELETE FROM atlas_kept.outbox")

    @pytest.mark.parametrize(
        "setting",
        [
            "transaction_read_only = on",
            "statement_timeout = '1ms'",
            "client_encoding = 'LATIN1'",
            "search_path = own",
            "lock_timeout = '1ms'",
            "standard_conforming_strings = off",
            "bytea_output = escape",
            "check_function_bodies = off",
        ],
    )
    async def test_no_seal_is_in_an_error_it_provokes(
        self, attacker: InvocationHost, admin: AsyncConnection, hosts: HostApi, setting: str
    ) -> None:
        """And what is published is as it was meant, or not at all."""
        held = await begin(attacker)
        block = f"SET log_parameter_max_length_on_error = -1; SET client_min_messages = debug5; SET {setting};"
        await ask(attacker, "tx.query", 1, f"DO $$ BEGIN {block} END $$")
        told = ""
        try:
            await ask(attacker, "events.publish", "a", "é€", {"id": "same"}, 1)
            await ask(attacker, "tx.commit", 1)
        except HostError as why:
            told = why.message
            await ask(attacker, "tx.rollback", 1)
        assert "seal" not in told
        assert "\\x" not in told
        await held
        cursor = await admin.execute("DELETE FROM atlas_kept.outbox RETURNING event, role")
        for event, role in await cursor.fetchall():
            assert '"data":"é€"' in event
            assert role == schema_of(attacker._project_id)

    async def test_depth_is_what_the_server_says(
        self, attacker: InvocationHost, admin: AsyncConnection, tenants: Tenants, decoded: Decoded
    ) -> None:
        """Even with the seal of a run of its own that it got hold of, what it adds comes second."""
        await decoded.lines()
        role = schema_of(attacker._project_id)
        seal = tenants.sealer.seal("cause", role, FORGED)
        held = await begin(attacker)
        await ask(attacker, "tx.query", 1, "SELECT atlas_run.cause($1, $2::bytea)", [FORGED, "\\x" + seal.hex()])
        await ask(attacker, "tx.query", 1, "INSERT INTO own VALUES ('x')")
        await ask(attacker, "tx.commit", 1)
        await held
        told = [line.partition("content:")[2] for line in await decoded.lines() if line.startswith("message")]
        found = [cause.read(content.encode(), role, tenants.sealer) for content in told]
        assert [each and each.depth for each in found] == [7, 1]


async def test_a_row_of_another_project_is_not_published(
    attacker: InvocationHost, admin: AsyncConnection, hosts: HostApi
) -> None:
    """Whoever gets a row in nevertheless: the envelope must be of the project whose role wrote it."""
    publishing = hosts.publishing
    assert publishing is not None
    held = await begin(attacker)
    await ask(attacker, "events.publish", "a", 1, None, 1)
    await ask(attacker, "tx.commit", 1)
    await held
    await admin.execute("UPDATE atlas_kept.outbox SET role = %s", [schema_of(RUN)])
    assert await relay(admin, Publisher(publishing._bus, SETTINGS)) == 1
    assert await stored(publishing._bus) == []
    cursor = await admin.execute("DELETE FROM atlas_kept.outbox RETURNING refused")
    ((why,),) = await cursor.fetchall()
    assert "its row of proj_" in why


@pytest.mark.parametrize("content", [b"", b"x", b"00" * 32, b"00" * 32 + b"{}", b"\xff" * 70, b"00" * 32 + b"\xff"])
def test_a_message_that_is_not_ours_is_no_cause(tenants: Tenants, content: bytes) -> None:
    assert cause.read(content, schema_of(RUN), tenants.sealer) is None
