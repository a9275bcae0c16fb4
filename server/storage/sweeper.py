"""Removes contents that no object has any more, and all that a deleted project had.

A content goes from the store first and from the table after, under its row's lock: whoever writes the same content
waits for that and writes it anew. A crash in between leaves a row, which the next sweep removes.
"""

from collections.abc import Sequence
from typing import Final

from server.log import logger
from server.postgres.control import Pool, transaction
from server.storage import contents
from server.storage.blobs import Blobs

log = logger("storage")

BATCH: Final = 200
"""Contents removed in one transaction."""

MOST: Final = 50_000
"""Of one sweep; the rest waits for the next one."""

ROWS: Final = 2_000
"""Of objects deleted in one transaction."""


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

        Rows of contents stay until they are swept: what is being written just now may come into the store after this.
        """
        while await self._forget_objects(project_id):
            pass
        async with transaction(self._pool) as conn:
            await conn.execute(
                "UPDATE storage_usage SET objects = 0, object_bytes = 0 WHERE project_id = %s", [project_id]
            )
        after = ""
        while hashes := await self._remove_contents(project_id, after):
            after = hashes[-1]

    async def _forget_objects(self, project_id: str) -> int:
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "DELETE FROM storage_objects WHERE (project_id, bucket, path) IN (SELECT project_id, bucket, path"
                " FROM storage_objects WHERE project_id = %s LIMIT %s)",
                [project_id, ROWS],
            )
        return cursor.rowcount

    async def _remove_contents(self, project_id: str, after: str) -> Sequence[str]:
        """The next of them, which are in the store no more."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT sha256 FROM storage_blobs WHERE project_id = %s AND sha256 > %s ORDER BY sha256 LIMIT %s"
                " FOR UPDATE",
                [project_id, after, BATCH],
            )
            hashes = [str(row[0]) for row in await cursor.fetchall()]
            await self._blobs.remove(project_id, hashes)
            await contents.settle(conn, project_id, hashes)
        return hashes

    async def _sweep_batch(self, older_than_s: float) -> int:
        async with transaction(self._pool) as conn:
            claimed = await contents.claim_loose(conn, most=BATCH, older_than_s=older_than_s)
            for owner, hashes in claimed.items():
                await self._blobs.remove(owner, hashes)
                await contents.forget(conn, owner, hashes)
        return sum(map(len, claimed.values()))
