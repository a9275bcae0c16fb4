"""What of finished runs is kept: so long, and of each project so much, the newest.

`run_usage` says where something is due, so a sweep that finds nothing reads one small table. Any number of workers may
sweep; the row's lock decides who does a project.
"""

import asyncio
from datetime import timedelta
from typing import Final

from server.clock import Clock, SystemClock
from server.log import logger
from server.postgres.control import Pool, transaction

log = logger("runs")

MIB: Final = 1024 * 1024
BATCH: Final = 2_000
"""Rows deleted in one transaction: some tens of milliseconds."""

_SWEEP: Final = """
WITH oldest AS (
  SELECT id, bytes, created_at, sum(bytes) OVER (ORDER BY created_at, id) - bytes AS before FROM (
    SELECT id, bytes, created_at FROM runs WHERE project_id = %(project_id)s AND state = 'finished'
    ORDER BY created_at, id LIMIT %(batch)s) AS first
)
DELETE FROM runs USING oldest WHERE runs.id = oldest.id
  AND (oldest.created_at < %(cutoff)s OR oldest.before < %(excess)s)
RETURNING runs.bytes
"""
_NOTE: Final = """
UPDATE run_usage SET bytes = bytes - %(freed)s, oldest_at = coalesce(
  (SELECT created_at FROM runs WHERE project_id = %(project_id)s AND state = 'finished'
   ORDER BY created_at, id LIMIT 1), 'infinity')
WHERE project_id = %(project_id)s
"""


class Retention:
    def __init__(self, pool: Pool, *, keep_hours: float, keep_mb: float, clock: Clock | None = None) -> None:
        """`keep_mb` is MiB of each project."""
        self._pool = pool
        self._keep = timedelta(hours=keep_hours)
        self._keep_bytes = int(keep_mb * MIB)
        self._clock = clock or SystemClock()

    async def sweep(self) -> int:
        """Delete what is due; the number of runs. Safe beside any other sweep."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT project_id FROM run_usage WHERE bytes > %s OR oldest_at < %s",
                [self._keep_bytes, self._clock.now() - self._keep],
            )
            due = [row[0] for row in await cursor.fetchall()]
        deleted = 0
        for project_id in due:
            while (count := await self._sweep_project(project_id)) > 0:
                deleted += count
                await asyncio.sleep(0)
        if deleted:
            log.info("runs.swept", f"{deleted} old records of runs were deleted", deleted=deleted)
        return deleted

    async def remove_project(self, project_id: str) -> None:
        """Delete all runs of a project that is deleted. Idempotent."""
        while True:
            async with transaction(self._pool) as conn:
                cursor = await conn.execute(
                    "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE project_id = %s LIMIT %s)",
                    [project_id, BATCH],
                )
                if cursor.rowcount == 0:
                    await conn.execute("DELETE FROM run_usage WHERE project_id = %s", [project_id])
                    return

    async def _sweep_project(self, project_id: str) -> int:
        cutoff = self._clock.now() - self._keep
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT bytes FROM run_usage WHERE project_id = %s FOR UPDATE SKIP LOCKED", [project_id]
            )
            if (usage := await cursor.fetchone()) is None:
                return 0
            asked = {
                "project_id": project_id,
                "batch": BATCH,
                "cutoff": cutoff,
                "excess": usage[0] - self._keep_bytes,
            }
            cursor = await conn.execute(_SWEEP, asked)
            freed = [row[0] for row in await cursor.fetchall()]
            await conn.execute(_NOTE, {"project_id": project_id, "freed": sum(freed)})
        return len(freed)
