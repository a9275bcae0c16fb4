"""Real servers from the wheels, one of each a test session, on free ports and sockets in a short directory."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from server.stack import nats, postgres, valkey
from server.stack.account import servant
from server.stack.part import Part, start

# Durability is not under test here, and a test machine's disk is slow.
QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "32MB"}


@pytest.fixture(scope="session")
def stack_dir() -> Iterator[Path]:
    """A directory with a path short enough for sockets, which `nobody` can pass."""
    path = Path(tempfile.mkdtemp(prefix="atlas-test-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def _running(part: Part) -> Iterator[None]:
    server = start(part, f"pytest-{os.getpid()}")
    try:
        server.wait_ready()
        yield
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres_url(stack_dir: Path) -> Iterator[str]:
    """URL of a superuser of a new cluster, database `postgres`, over a unix socket."""
    data, sockets, account = stack_dir / "postgres", stack_dir / "pg", servant()
    bin_dir = postgres.prepare(data, sockets, stack_dir / "bin", account)
    for _ in _running(postgres.part(data, sockets, bin_dir, stack_dir / "postgres.log", account, **QUICK)):
        yield postgres.url(sockets, "postgres")


@pytest.fixture(scope="session")
def postgres_admin(postgres_url: str) -> "Iterator[psycopg.Connection[tuple[object, ...]]]":
    """A superuser's connection to the cluster, without transactions."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def make_database(
    postgres_url: str, postgres_admin: "psycopg.Connection[tuple[object, ...]]"
) -> Iterator[Callable[..., str]]:
    """Makes databases, copies of `template`, and returns their URLs (superuser); they are dropped after the test.

    Copied file by file: a copy that goes through the buffers takes longer to make and four times as long to drop.
    """
    made: list[str] = []

    def make(template: str = "template1") -> str:
        made.append(f"test_{secrets.token_hex(6)}")
        postgres_admin.execute(f'CREATE DATABASE "{made[-1]}" TEMPLATE "{template}" STRATEGY file_copy')
        return postgres_url.replace("@/postgres?", f"@/{made[-1]}?")

    yield make
    for name in made:
        postgres_admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def fresh_database(make_database: Callable[[], str]) -> str:
    """URL of an empty database of this test's own (superuser)."""
    return make_database()


@pytest.fixture(scope="session")
def valkey_url(stack_dir: Path) -> Iterator[str]:
    socket, password = stack_dir / "kv" / "valkey.sock", secrets.token_urlsafe(24)
    part = valkey.part(
        data=stack_dir / "valkey",
        socket=socket,
        config=stack_dir / "valkey.conf",
        programs=stack_dir / "bin",
        log=stack_dir / "valkey.log",
        password=password,
        account=servant(),
    )
    for _ in _running(part):
        yield valkey.url(socket, password)


@pytest.fixture(scope="session")
def nats_url(stack_dir: Path) -> Iterator[str]:
    port, token = nats.free_port(), secrets.token_urlsafe(24)
    part = nats.part(
        data=stack_dir / "nats",
        port=port,
        config=stack_dir / "nats.conf",
        programs=stack_dir / "bin",
        log=stack_dir / "nats.log",
        token=token,
        account=servant(),
    )
    for _ in _running(part):
        yield nats.url(port, token)
