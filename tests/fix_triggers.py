"""What triggers need around them in the control database: functions and workflows as rows, and caches that hear."""

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.triggers.cache import TriggerCache

CODE = b"export default () => 1"
ORDER = "cdc.INSERT.orders"


async def add_function(pool: Pool, project_id: str, slug: str = "hello", source: bytes = CODE) -> str:
    """The id of a function that has a version, and the artifact of one."""
    function_id, sha256 = str(uuid4()), hashlib.sha256(source).hexdigest()
    async with transaction(pool) as conn:
        await conn.execute(
            "INSERT INTO artifacts (project_id, sha256, data) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            [project_id, sha256, source],
        )
        await conn.execute(
            "INSERT INTO functions (id, project_id, name, slug, active_version, last_version)"
            " VALUES (%s, %s, %s, %s, 1, 1)",
            [function_id, project_id, slug, slug],
        )
        await conn.execute(
            "INSERT INTO function_versions (function_id, project_id, version, runtime, language, entrypoint, isolation,"
            " sha256, source_sha256, source_bytes)"
            " VALUES (%s, %s, 1, 'quickjs', 'javascript', 'hello.js', 'warm', %s, %s, %s)",
            [function_id, project_id, sha256, sha256, len(source)],
        )
    return function_id


async def add_workflow(pool: Pool, project_id: str) -> str:
    async with transaction(pool) as conn:
        cursor = await conn.execute(
            "INSERT INTO workflow_definitions (project_id, name, definition)"
            """ VALUES (%s, 'Hourly', '{"nodes": [], "edges": []}') RETURNING id""",
            [project_id],
        )
        ((workflow_id,),) = await cursor.fetchall()
    return str(workflow_id)


async def add_trigger(pool: Pool, changes: Changes, function_id: str, **columns: Any) -> str:
    """The id of a trigger on a function, which every process hears of."""
    values = {"event_type": ORDER, "target_type": "function", "function_id": function_id} | columns
    told = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in values.items()}
    async with transaction(pool) as conn:
        cursor = await conn.execute(
            f"INSERT INTO triggers (project_id, {', '.join(told)})"
            f" SELECT project_id{', %s' * len(told)} FROM functions WHERE id = %s RETURNING project_id, id".encode(),
            [*told.values(), function_id],
        )
        ((project_id, trigger_id),) = await cursor.fetchall()
        await changes.announce(conn, "trigger", f"{project_id}/{trigger_id}")
    await changes.fence()
    return str(trigger_id)


async def change_trigger(pool: Pool, changes: Changes, trigger_id: str, assignments: str, *values: object) -> None:
    async with transaction(pool) as conn:
        cursor = await conn.execute(
            f"UPDATE triggers SET {assignments}, updated_at = clock_timestamp() WHERE id = %s"
            " RETURNING project_id".encode(),
            [*values, trigger_id],
        )
        ((project_id,),) = await cursor.fetchall()
        await changes.announce(conn, "trigger", f"{project_id}/{trigger_id}")
    await changes.fence()


@dataclass(slots=True)
class Process:
    """One process of the cluster, as far as triggers in memory are concerned."""

    changes: Changes
    cache: TriggerCache


StartProcess = Callable[[], Awaitable[Process]]


@pytest.fixture
async def start_process(control_url: str, pool: Pool) -> AsyncIterator[StartProcess]:
    started: list[Process] = []

    async def start() -> Process:
        changes = Changes(control_url)
        started.append(Process(changes, TriggerCache(pool, changes)))
        await changes.start()
        await started[-1].cache.start()
        return started[-1]

    yield start
    for process in started:
        await process.changes.close()
