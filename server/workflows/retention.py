"""What of finished runs is kept: so long, and of each project so much, the newest; and versions as long as their runs.

A sweep counts what the runs take that have ended since the last one: their ends, which are many at a time, then need
not wait for each other at one row of their project.
"""

from datetime import timedelta
from typing import Final

from psycopg.errors import ForeignKeyViolation

from server.clock import Clock, SystemClock
from server.errors import Unavailable
from server.log import logger
from server.postgres.control import Connection, Pool, transaction

log = logger("workflows")

MIB: Final = 1024 * 1024
RUNS: Final = 200
STEPS: Final = 2_000
"""Deleted in one statement, though at least one run; half as many steps, again and again, when that takes too long."""

LEAST: Final = 100
"""Steps of the smallest portion; when that takes too long too, it is left to the next time."""

ROW_BYTES: Final = 256
"""What a run or a step takes besides what is written in it."""

_COUNT: Final = f"""
WITH ended AS MATERIALIZED (
  SELECT id FROM workflow_runs WHERE finished_at IS NOT NULL AND bytes IS NULL LIMIT %s FOR UPDATE SKIP LOCKED
), counted AS (
  UPDATE workflow_runs r SET bytes = {ROW_BYTES} + octet_length(r.event) + (
    SELECT coalesce(sum({ROW_BYTES} + coalesce(octet_length(s.input), 0) + coalesce(octet_length(s.output), 0)
      + pg_column_size(s.history)), 0) FROM workflow_steps s WHERE s.run_id = r.id)
  FROM ended WHERE r.id = ended.id RETURNING r.project_id, r.bytes
)
INSERT INTO workflow_usage AS known (project_id, bytes)
SELECT project_id, sum(bytes) FROM counted GROUP BY project_id ORDER BY project_id
ON CONFLICT (project_id) DO UPDATE SET bytes = known.bytes + excluded.bytes
"""
_DELETE: Final = """
WITH due AS MATERIALIZED (
  SELECT id, created_at, bytes FROM workflow_runs WHERE {which} LIMIT %s FOR UPDATE SKIP LOCKED
), measured AS (
  SELECT *, (SELECT count(*) FROM workflow_steps s WHERE s.run_id = due.id) AS steps FROM due
), summed AS (
  SELECT id, sum(steps) OVER oldest AS until, steps, sum(bytes) OVER oldest - bytes AS before FROM measured
  WINDOW oldest AS (ORDER BY created_at, id)
), gone AS (
  DELETE FROM workflow_runs r USING summed s
  WHERE r.id = s.id AND (s.until <= %s OR s.until = s.steps) AND coalesce(s.before, 0) < %s::float8
  RETURNING r.project_id, r.bytes
)
SELECT project_id, coalesce(sum(bytes), 0)::bigint, count(*) FROM gone GROUP BY project_id ORDER BY project_id
"""
_OLDEST: Final = "project_id = %s AND state <> 'running' AND bytes IS NOT NULL ORDER BY created_at, id"
_UNUSED: Final = """
DELETE FROM workflow_versions v WHERE NOT EXISTS (
  SELECT 1 FROM workflow_runs r WHERE r.workflow_id = v.workflow_id AND r.version = v.version)
"""


class WorkflowRetention:
    def __init__(self, pool: Pool, *, keep_hours: float, keep_mb: float, clock: Clock | None = None) -> None:
        """`keep_mb` is MiB of each project."""
        self._pool = pool
        self._keep = timedelta(hours=keep_hours)
        self._keep_bytes = int(keep_mb * MIB)
        self._clock = clock or SystemClock()

    async def sweep(self) -> int:
        """Delete what is due; the number of runs. Safe beside any other sweep."""
        deleted = await self._delete("finished_at < %s", self._clock.now() - self._keep)
        while await self._count():
            pass
        for project_id in await self._full():
            deleted += await self._delete(_OLDEST, project_id, full=project_id)
        if deleted:
            log.info("workflows.swept", f"{deleted} old workflow runs were deleted", deleted=deleted)
        try:
            async with transaction(self._pool) as conn:
                await conn.execute(_UNUSED)
        except ForeignKeyViolation:  # a run of it has begun meanwhile; next time
            pass
        return deleted

    async def remove_project(self, project_id: str) -> None:
        """Delete all of a project that is deleted. Idempotent."""
        await self._delete("project_id = %s", project_id)
        async with transaction(self._pool) as conn:
            await conn.execute("DELETE FROM workflow_versions WHERE project_id = %s", [project_id])
            await conn.execute("DELETE FROM workflow_usage WHERE project_id = %s", [project_id])

    async def _count(self) -> bool:
        """Whether there was anything to be counted."""
        async with transaction(self._pool) as conn:
            return (await conn.execute(_COUNT.encode(), [RUNS])).rowcount > 0

    async def _full(self) -> list[str]:
        async with transaction(self._pool) as conn:
            cursor = await conn.execute("SELECT project_id FROM workflow_usage WHERE bytes > %s", [self._keep_bytes])
            return [str(project_id) for (project_id,) in await cursor.fetchall()]

    async def _delete(self, which: str, value: object, *, full: str | None = None) -> int:
        """All of these, in portions; how many runs. Of a project that is `full`, until it is not.

        Unavailable when not even the smallest portion can be deleted.
        """
        deleted, most = 0, STEPS
        while True:
            try:
                async with transaction(self._pool) as conn:
                    excess = float("inf") if full is None else await self._excess(conn, full)
                    gone = await _portion(conn, which, [value, RUNS, most, excess]) if excess > 0 else 0
            except Unavailable:
                if most <= LEAST:
                    raise
                most //= 2
                continue
            if gone == 0:
                return deleted
            deleted += gone

    async def _excess(self, conn: Connection, project_id: str) -> float:
        """Bytes to be deleted of it; 0 where somebody else does that."""
        cursor = await conn.execute(
            "SELECT bytes FROM workflow_usage WHERE project_id = %s FOR UPDATE SKIP LOCKED", [project_id]
        )
        usage = await cursor.fetchone()
        return 0.0 if usage is None else float(usage[0] - self._keep_bytes)


async def _portion(conn: Connection, which: str, values: list[object]) -> int:
    cursor = await conn.execute(_DELETE.format(which=which).encode(), values)
    gone = await cursor.fetchall()
    for project_id, freed, _ in gone:
        await conn.execute("UPDATE workflow_usage SET bytes = bytes - %s WHERE project_id = %s", [freed, project_id])
    return sum(count for _, _, count in gone)
