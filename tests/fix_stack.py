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


@pytest.fixture
def make_database(postgres_url: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases and returns their URLs (superuser); they are dropped after the test."""
    made: list[str] = []

    def make() -> str:
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        made.append(name)
        return postgres_url.replace("@/postgres?", f"@/{name}?")

    yield make
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for name in made:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


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
