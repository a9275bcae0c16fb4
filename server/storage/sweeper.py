"""Removes contents that no object has any more, and all that a deleted project had.

A content goes from the store first and from the table after, under its row's lock: whoever writes the same content
waits for that and writes it anew. A crash in between leaves a row, which the next sweep removes.
"""

from typing import Final

from server.log import logger
from server.postgres.control import Pool, transaction
from server.storage import contents
from server.storage.blobs import Blobs

log = logger("storage")

BATCH: Final = 200
"""Contents removed in one transaction."""

MOST: Final = 5_000
"""Of one sweep; the rest waits for the next one."""

ROWS: Final = 2_000


class Sweeper:
    """Any number of processes may sweep at the same time."""

    def __init__(self, pool: Pool, blobs: Blobs) -> None:
        self._pool = pool
        self._blobs = blobs

    async def sweep(self, *, older_than_s: float = contents.GRACE_S) -> int:
        """Remove what has been loose for so long; how many. `BlobsUnavailable` when the store is away."""
        removed = 0
        while removed < MOST and (count := await self._sweep_batch(older_than_s)):
            removed += count
        if removed:
            log.info("storage.swept", f"{removed} contents that no object had were removed", removed=removed)
        return removed

    async def remove_project(self, project_id: str) -> None:
        """Delete all objects of a project that is deleted, with their contents. Idempotent.

        A row whose content may still be written just now stays, and is swept later.
        """
        while await self._forget_objects(project_id):
            pass
        async with transaction(self._pool) as conn:
            await conn.execute(
                "UPDATE storage_usage SET objects = 0, object_bytes = 0 WHERE project_id = %s", [project_id]
            )
        while await self._sweep_batch(contents.WRITE_S, project_id):
            pass

    async def _forget_objects(self, project_id: str) -> int:
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "DELETE FROM storage_objects WHERE (project_id, bucket, path) IN (SELECT project_id, bucket, path"
                " FROM storage_objects WHERE project_id = %s LIMIT %s) RETURNING sha256",
                [project_id, ROWS],
            )
            hashes = sorted({row[0] for row in await cursor.fetchall()})
            await conn.execute(
                "UPDATE storage_blobs SET loose_since = '-infinity' WHERE project_id = %s AND sha256 = ANY(%s)"
                " AND loose_since IS NULL",
                [project_id, hashes],
            )
        return len(hashes)

    async def _sweep_batch(self, older_than_s: float, project_id: str | None = None) -> int:
        async with transaction(self._pool) as conn:
            claimed = await contents.claim_loose(conn, most=BATCH, older_than_s=older_than_s, project_id=project_id)
            for owner, hashes in claimed.items():
                await self._blobs.remove(owner, hashes)
                await contents.forget(conn, owner, hashes)
        return sum(map(len, claimed.values()))
