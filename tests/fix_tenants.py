"""The tenants database: hardened once a session, projects made and dropped by the test that needs them."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from server.host.database import Database
from server.postgres.tenants import Tenants


@pytest.fixture(scope="session")
def tenants(postgres_url: str) -> Iterator[Tenants]:
    """A hardened tenants database of this test session."""
    name = f"tenants_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    found = Tenants(
        postgres_url.replace("@/postgres?", f"@/{name}?"),
        secret=secrets.token_bytes(32),
        other_databases=("postgres", "template1"),
    )
    with asyncio.Runner() as runner:
        runner.run(found.start())
    yield found
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def shared_project(tenants: Tenants) -> Iterator[str]:
    """One project's id for all tests that leave nothing in it."""
    project_id = str(uuid.uuid4())
    with asyncio.Runner() as runner:
        runner.run(tenants.provision(project_id))
        yield project_id
        runner.run(tenants.drop(project_id))


@pytest.fixture
async def project(tenants: Tenants) -> AsyncIterator[str]:
    """A new project's id."""
    project_id = str(uuid.uuid4())
    await tenants.provision(project_id)
    yield project_id
    await tenants.drop(project_id)


@pytest.fixture
async def database(tenants: Tenants) -> AsyncIterator[Database]:
    found = Database(tenants)
    yield found
    await found.close()
