"""The control plane's database of one test: migrated, with a pool and a listener on it."""

from collections.abc import AsyncIterator

import pytest

from server.postgres.changes import Changes
from server.postgres.control import Pool, open_pool
from server.postgres.migrate import migrate


@pytest.fixture
async def control_url(fresh_database: str) -> str:
    await migrate(fresh_database)
    return fresh_database


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
