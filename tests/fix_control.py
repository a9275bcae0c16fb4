"""The control plane's database of one test, migrated once a session and copied, with a pool and a listener on it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from server.postgres.changes import Changes
from server.postgres.control import Pool, open_pool
from server.postgres.migrate import migrate


@pytest.fixture(scope="session")
def control_template(postgres_url: str, postgres_admin: "psycopg.Connection[tuple[object, ...]]") -> str:
    """The name of a migrated database to which nobody connects."""
    name = "control_template"
    postgres_admin.execute(f"CREATE DATABASE {name}")
    with ThreadPoolExecutor(1) as thread:  # the loop of a module may be running in this one
        thread.submit(asyncio.run, migrate(postgres_url.replace("@/postgres?", f"@/{name}?"))).result()
    return name


@pytest.fixture
def control_url(make_database: Callable[..., str], control_template: str) -> str:
    return make_database(control_template)


@pytest.fixture
async def pool(control_url: str) -> AsyncIterator[Pool]:
    async with open_pool(control_url, max_size=5) as opened:
        yield opened


@pytest.fixture
async def changes(control_url: str) -> AsyncIterator[Changes]:
    """Not started: subscribe first, then `await changes.start()`. Closed after the test."""
    made = Changes(control_url)
    yield made
    await made.close()
