"""Provisioning and hardening of the tenants database, over a socket with peer and over TCP with passwords."""

import asyncio
import os
import secrets
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import psycopg
import pytest
from psycopg import pq

from engines.contract import HostError
from server.host.database import Database
from server.postgres.channel import Address, ConnectionLost, SqlError
from server.postgres.holds import CONNECTION_LIMIT
from server.postgres.session import Session
from server.postgres.tenants import Tenants, schema_of
from server.stack import nats, postgres
from server.stack.account import private_file, servant
from server.stack.part import Part, start
from tests.fix_stack import QUICK

SECRET = secrets.token_bytes(32)


@pytest.fixture(scope="module")
def password_tenants(stack_dir: Path) -> Iterator[Tenants]:
    """A tenants database on a server that lets projects in by password only, over TCP; its admin URL is a socket's."""
    data, sockets, account, port = stack_dir / "pw", stack_dir / "pws", servant(), nats.free_port()
    bin_dir = postgres.prepare(data, sockets, stack_dir / "bin", account)
    access = private_file(
        data / "cluster" / "by_password.conf",
        "local all postgres peer map=altbase\nhost all postgres 127.0.0.1/32 trust\n"
        "host all all 127.0.0.1/32 scram-sha-256\n",
        account,
    )
    part = postgres.part(
        data, sockets, bin_dir, stack_dir / "pw.log", account,
        **QUICK, listen_addresses="127.0.0.1", port=str(port), hba_file=str(access),
    )  # fmt: skip
    admin = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    server = start(_probing(part, admin), f"pytest-{os.getpid()}")
    try:
        server.wait_ready()
        found = Tenants(admin, secret=SECRET, other_databases=("template1",))
        with asyncio.Runner() as runner:
            runner.run(found.start())
        yield found
    finally:
        server.stop()
        shutil.rmtree(data)


def _probing(part: Part, url: str) -> Part:
    return replace(part, probe=lambda: pq.PGconn.ping(url.encode()) == pq.Ping.OK)


async def one(database: Database, project: str, sql: str) -> object:
    rows = orjson.loads(await database.query(project, sql, (), timeout_ms=10_000))
    return rows[0]["v"]


async def test_many_processes_may_harden_at_a_time_and_twice_changes_nothing(fresh_database: str) -> None:
    many = [Tenants(fresh_database, secret=SECRET, other_databases=("postgres", "template1")) for _ in range(5)]
    for found in await asyncio.gather(*(each.start() for each in many)):
        assert (found.readable_relations, found.callable_functions) == (0, 0)

    async def privileges() -> object:
        async with await psycopg.AsyncConnection.connect(fresh_database) as admin:
            cursor = await admin.execute("SELECT array_agg((oid, xmin)::text ORDER BY oid) FROM pg_class")
            return await cursor.fetchone()

    before = await privileges()
    await many[0].start()
    assert await privileges() == before


async def test_provision_many_times_at_a_time(tenants: Tenants, database: Database, project: str) -> None:
    await asyncio.gather(*(tenants.provision(project) for _ in range(5)))
    assert await one(database, project, "SELECT current_user::text AS v") == schema_of(project)
    async with await psycopg.AsyncConnection.connect(tenants._admin_url) as admin:
        cursor = await admin.execute(
            "SELECT rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,"
            " rolconnlimit FROM pg_roles WHERE rolname = %s",
            [schema_of(project)],
        )
        expected = (False, False, False, False, True, False, False, CONNECTION_LIMIT)
        assert await cursor.fetchone() == expected


async def test_what_an_administrator_creates_for_a_project_is_the_projects(
    tenants: Tenants, database: Database, project: str
) -> None:
    async with await psycopg.AsyncConnection.connect(tenants._admin_url, autocommit=True) as admin:
        await admin.execute(f"CREATE TABLE {schema_of(project)}.given (id serial, v int DEFAULT 7)".encode())
    await database.query(project, "INSERT INTO given DEFAULT VALUES", (), timeout_ms=5_000)
    assert await one(database, project, "SELECT v FROM given") == 7


async def test_drop_ends_sessions_and_leaves_nothing(tenants: Tenants, database: Database) -> None:
    project = str(uuid.uuid4())
    await tenants.provision(project)
    await database.query(project, "CREATE TABLE t (i int)", (), timeout_ms=5_000)
    await database.query(project, "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", (), timeout_ms=5_000)
    await tenants.drop(project)
    await tenants.drop(project)
    with pytest.raises(HostError) as caught:
        await database.query(project, "SELECT 1", (), timeout_ms=5_000)
    assert caught.value.code == "unavailable"
    async with await psycopg.AsyncConnection.connect(tenants._admin_url) as admin:
        cursor = await admin.execute(
            "SELECT (SELECT count(*) FROM pg_roles WHERE rolname = %(name)s),"
            " (SELECT count(*) FROM pg_namespace WHERE nspname = %(name)s)",
            {"name": schema_of(project)},
        )
        assert await cursor.fetchone() == (0, 0)
    await tenants.provision(project)
    assert await one(database, project, "SELECT 1 AS v") == 1
    await tenants.drop(project)


async def test_people_log_in_with_psql_url(tenants: Tenants, project: str) -> None:
    async with await psycopg.AsyncConnection.connect(tenants.psql_url(project)) as person:
        await person.execute("CREATE TABLE mine (i int)")
        cursor = await person.execute("SELECT current_user, 'mine'::regclass::text, current_schema")
        assert await cursor.fetchone() == (schema_of(project), "mine", schema_of(project))


async def test_passwords_are_derived_set_and_healed(password_tenants: Tenants) -> None:
    tenants, project = password_tenants, str(uuid.uuid4())
    await tenants.provision(project)
    same = Tenants(tenants._admin_url, secret=SECRET)
    assert same.psql_url(project) == tenants.psql_url(project)
    assert tenants.psql_url(project) != tenants.psql_url(str(uuid.uuid4()))
    async with await psycopg.AsyncConnection.connect(tenants.psql_url(project)):
        pass
    database = Database(tenants, total=1)
    other = str(uuid.uuid4())
    await tenants.provision(other)
    assert await one(database, project, "SELECT current_user::text AS v") == schema_of(project)
    await database.query(project, "ALTER ROLE CURRENT_USER PASSWORD 'mine'", (), timeout_ms=5_000)
    assert await one(database, other, "SELECT 1 AS v") == 1  # takes the only connection
    assert await one(database, project, "SELECT 2 AS v") == 2
    await database.close()
    for each in (project, other):
        await tenants.drop(each)


async def test_a_wrong_password_and_no_server(password_tenants: Tenants) -> None:
    project = str(uuid.uuid4())
    await password_tenants.provision(project)
    stranger = Tenants(password_tenants._admin_url, secret=b"another secret of 32 bytes or so")
    with pytest.raises(SqlError) as caught:
        await Session.connect(stranger.address, stranger.login(project, {}), max_message_bytes=1000)
    assert caught.value.sqlstate == "28P01"
    nobody = Address(host="127.0.0.1", port=1)
    with pytest.raises(ConnectionLost):
        await Session.connect(nobody, stranger.login(project, {}), max_message_bytes=1000)
    required = Tenants(password_tenants._admin_url + "?sslmode=require", secret=SECRET)
    with pytest.raises(ConnectionLost, match="does not offer TLS"):
        await Session.connect(required.address, required.login(project, {}), max_message_bytes=1000)
    await password_tenants.drop(project)


@pytest.mark.parametrize("project_id", ["", "x", "../etc", "A" * 36, "0" * 31, 'a"; DROP ROLE postgres; --'])
def test_names_are_made_of_uuids_only(project_id: str) -> None:
    with pytest.raises(ValueError, match="not a project id"):
        schema_of(project_id)


def test_a_secret_must_be_long() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Tenants("postgresql:///tenants", secret=b"short")
