"""What of runs is kept: finished ones for so long, and versions as long as a run is of them."""

from datetime import timedelta
from typing import Final

from psycopg.errors import ForeignKeyViolation

from server.clock import Clock, SystemClock
from server.errors import Unavailable
from server.log import logger
from server.postgres.control import Pool, transaction

log = logger("workflows")

RUNS: Final = 200
STEPS: Final = 2_000
"""Deleted in one statement, though at least one run; half as many steps, again and again, when that takes too long."""

LEAST: Final = 100
"""Steps of the smallest portion; when that takes too long too, it is left to the next time."""

_DELETE: Final = """
WITH due AS MATERIALIZED (
  SELECT id FROM workflow_runs WHERE {which} LIMIT %s FOR UPDATE SKIP LOCKED
), counted AS (
  SELECT id, (SELECT count(*) FROM workflow_steps s WHERE s.run_id = due.id) AS steps FROM due
), summed AS (
  SELECT id, sum(steps) OVER (ORDER BY id) AS until, steps FROM counted
)
DELETE FROM workflow_runs WHERE id IN (SELECT id FROM summed WHERE until <= %s OR until = steps)
"""
_UNUSED: Final = """
DELETE FROM workflow_versions v WHERE NOT EXISTS (
  SELECT 1 FROM workflow_runs r WHERE r.workflow_id = v.workflow_id AND r.version = v.version)
"""


class WorkflowRetention:
    def __init__(self, pool: Pool, *, keep_hours: float, clock: Clock | None = None) -> None:
        self._pool = pool
        self._keep = timedelta(hours=keep_hours)
        self._clock = clock or SystemClock()

    async def sweep(self) -> int:
        """Delete what is due; the number of runs. Safe beside any other sweep."""
        deleted = await self._delete("finished_at < %s", self._clock.now() - self._keep)
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

    async def _delete(self, which: str, value: object) -> int:
        """All of these, in portions; how many runs. Unavailable when not even the smallest portion can be deleted."""
        deleted, most = 0, STEPS
        while True:
            try:
                async with transaction(self._pool) as conn:
                    cursor = await conn.execute(_DELETE.format(which=which).encode(), [value, RUNS, most])
            except Unavailable:
                if most <= LEAST:
                    raise
                most //= 2
                continue
            if cursor.rowcount == 0:
                return deleted
            deleted += cursor.rowcount
