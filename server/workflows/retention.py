"""What of runs is kept: finished ones for so long, and versions as long as a run is of them."""

from datetime import timedelta
from typing import Final

from psycopg.errors import ForeignKeyViolation

from server.clock import Clock, SystemClock
from server.log import logger
from server.postgres.control import Pool, transaction

log = logger("workflows")

BATCH: Final = 200
"""Runs deleted in one transaction, with up to as many steps each."""

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
        deleted = 0
        while (count := await self._delete("finished_at < %s", self._clock.now() - self._keep)) > 0:
            deleted += count
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
        while await self._delete("project_id = %s", project_id) > 0:
            pass
        async with transaction(self._pool) as conn:
            await conn.execute("DELETE FROM workflow_versions WHERE project_id = %s", [project_id])

    async def _delete(self, which: str, value: object) -> int:
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "DELETE FROM workflow_runs WHERE id IN"
                f" (SELECT id FROM workflow_runs WHERE {which} LIMIT {BATCH} FOR UPDATE SKIP LOCKED)".encode(),
                [value],
            )
            return cursor.rowcount
