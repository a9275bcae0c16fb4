"""The servers from the wheels start, serve, keep out strangers, and survive a kill."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import nats
import psycopg
import pytest
import redis.asyncio as redis

from server.stack import postgres
from server.stack.account import servant
from server.stack.binaries import in_wheel
from server.stack.part import Part, start


async def test_postgres_decodes_logically_and_knows_utf8(postgres_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        row = await (await connection.execute("SELECT current_setting('wal_level'), 'Ünï'::text, version()")).fetchone()
    assert row is not None
    assert row[:2] == ("logical", "Ünï")
    assert row[2].startswith("PostgreSQL 18")


def test_a_project_role_needs_no_password_from_us(fresh_database: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("CREATE ROLE proj_peer LOGIN")
        try:
            with psycopg.connect(fresh_database.replace("postgres@", "proj_peer@")) as tenant:
                assert tenant.execute("SELECT current_user").fetchone() == ("proj_peer",)
        finally:
            connection.execute("DROP ROLE proj_peer")


def test_only_our_user_and_only_the_mapped_roles_get_in(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE stranger LOGIN SUPERUSER")
        try:
            with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
                psycopg.connect(postgres_url.replace("postgres@", "stranger@"))
        finally:
            connection.execute("DROP ROLE stranger")
    if account := servant():  # as root we can be another user, too
        psql = in_wheel(postgres.WHEEL, "psql")
        refused = subprocess.run(
            [psql, postgres_url, "-c", "SELECT 1"], env={}, capture_output=True, text=True, user=account.uid, cwd="/"
        )
        assert refused.returncode == 2
        assert "Peer authentication failed" in refused.stderr


@pytest.mark.parametrize(
    "query",
    [
        "SELECT repeat('x', 400000000), repeat('y', 400000000), repeat('z', 400000000)",
        "SELECT array_agg(repeat('x', 1000000)) FROM generate_series(1, 5000)",
    ],
)
def test_a_query_that_wants_too_much_memory_fails_alone(fresh_database: str, query: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection, psycopg.connect(fresh_database) as other:
        with pytest.raises(psycopg.errors.OutOfMemory):
            connection.execute(query)
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert other.execute("SELECT 2").fetchone() == (2,)


def test_every_test_has_its_own_database(make_database: Callable[[], str]) -> None:
    first, second = make_database(), make_database()
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE only_here ()")
    with psycopg.connect(second) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM only_here")


async def test_valkey_keeps_a_value(valkey_url: str) -> None:
    async with redis.Redis.from_url(valkey_url) as client:
        await client.set("k", "v", ex=60)
        assert await client.get("k") == b"v"


def test_valkey_wants_its_password(valkey_url: str) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(valkey_url.split("@", 1)[1])
        stranger.sendall(b"GET k\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")


async def test_nats_stores_a_message(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    stream = client.jetstream()
    await stream.add_stream(name="T", subjects=["t.>"])
    assert (await stream.publish("t.a", b"x")).seq == 1
    await stream.delete_stream("T")
    await client.close()


def test_nats_wants_its_token(nats_url: str) -> None:
    port = int(nats_url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as stranger, stranger.makefile("rb") as lines:
        assert lines.readline().startswith(b"INFO ")
        stranger.sendall(b'CONNECT {"auth_token": "wrong"}\r\nPING\r\n')
        assert lines.readline() == b"-ERR 'Authorization Violation'\r\n"


@pytest.fixture
def own_postgres(stack_dir: Path) -> tuple[Part, str]:
    """A cluster to mistreat, with every commit on disk."""
    data, sockets, account = stack_dir / "own", stack_dir / "own-pg", servant()
    bin_dir = postgres.prepare(data, sockets, stack_dir / "bin", account)
    return postgres.part(data, sockets, bin_dir, stack_dir / "own.log", account), postgres.url(sockets, "postgres")


def test_postgres_has_every_row_after_kill_9(own_postgres: tuple[Part, str], stack_dir: Path) -> None:
    part, url = own_postgres
    server = start(part, "own")
    server.wait_ready()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    server.process.send_signal(signal.SIGKILL)
    server.close()
    # As after a reboot: the number in the lock file now belongs to another program.
    lock = stack_dir / "own" / "cluster" / "postmaster.pid"
    lock.write_text(lock.read_text().replace(str(server.process.pid), str(os.getpid()), 1))
    server = start(part, "own")
    try:
        server.wait_ready()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (1000,)
    finally:
        server.stop()
    assert not list((stack_dir / "own-pg").iterdir())
