"""What of the ledger is kept, in batches, so that nobody waits for a deletion. Any number of workers may sweep.

done, skipped, cancelled   as long as the stream may bring their events again, which would else run a second time
dead                       ATLAS_DEAD_LETTERS_KEEP_DAYS, and never shorter than those
events                     as long as a delivery of theirs
parked messages            PARKED_KEEP, and the newest PARKED_MOST
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Final

from server.clock import Clock, SystemClock
from server.log import logger
from server.paging import EARLIEST
from server.postgres.control import Connection, Pool, transaction

log = logger("dispatch")

MARGIN: Final = timedelta(hours=1)
"""Between the age at which the stream drops an event and the one at which its deliveries are forgotten."""

PARKED_KEEP: Final = timedelta(days=30)
PARKED_MOST: Final = 10_000
BATCH: Final = 1_000
"""Rows of one transaction: some tens of milliseconds."""

_FORGET: Final = """
DELETE FROM deliveries WHERE id IN (
  SELECT id FROM deliveries WHERE {which} AND finished_at < %s
  ORDER BY finished_at LIMIT %s FOR UPDATE SKIP LOCKED)
RETURNING project_id, event_id
"""
_OVER: Final = _FORGET.format(which="state IN ('done', 'skipped', 'cancelled')")
_DEAD: Final = _FORGET.format(which="state = 'dead'")
_OF_PROJECT: Final = """
DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE project_id = %s LIMIT %s))
"""
_WITHOUT_DELIVERY: Final = """
DELETE FROM delivered_events e USING unnest(%s::uuid[], %s::text[]) AS freed (project_id, event_id)
WHERE e.project_id = freed.project_id AND e.event_id = freed.event_id AND NOT EXISTS (
  SELECT 1 FROM deliveries d WHERE d.project_id = freed.project_id AND d.event_id = freed.event_id)
"""
_PARKED: Final = """
DELETE FROM parked_messages WHERE (parked_at, sequence) IN (
  SELECT parked_at, sequence FROM parked_messages
  WHERE parked_at < %s OR (parked_at, sequence) <= (
    SELECT parked_at, sequence FROM parked_messages ORDER BY parked_at DESC, sequence DESC OFFSET %s LIMIT 1)
  ORDER BY parked_at, sequence LIMIT %s)
"""


_START: Final = (EARLIEST.moment, EARLIEST.id, "")


class LedgerRetention:
    def __init__(
        self,
        pool: Pool,
        *,
        events_keep_hours: float,
        dead_letters_keep_days: float,
        clock: Clock | None = None,
        batch: int = BATCH,
        parked_most: int = PARKED_MOST,
    ) -> None:
        self._pool = pool
        self._keep = timedelta(hours=events_keep_hours) + MARGIN
        self._keep_dead = max(timedelta(days=dead_letters_keep_days), self._keep)
        self._clock = clock or SystemClock()
        self._batch = batch
        self._parked_most = parked_most
        self._looked: tuple[Any, ...] = _START

    async def sweep(self) -> int:
        """Delete what is due; the number of deliveries and parked messages. Safe beside any other sweep."""
        now = self._clock.now()
        swept = await self._repeated(self._forget, _OVER, now - self._keep)
        swept += await self._repeated(self._forget, _DEAD, now - self._keep_dead)
        swept += await self._repeated(self._delete, _PARKED, now - PARKED_KEEP, self._parked_most)
        await self._look_for_events()
        if swept:
            log.info("ledger.swept", f"{swept} old deliveries and parked messages were deleted", deleted=swept)
        return swept

    async def remove_project(self, project_id: str) -> None:
        """Delete all deliveries and their events of a project that is deleted. Idempotent."""
        for table in ("deliveries", "delivered_events"):
            await self._repeated(self._delete, _OF_PROJECT.format(table=table), project_id)

    async def _repeated(
        self, delete: Callable[[str, Sequence[object]], Awaitable[int]], query: str, *values: object
    ) -> int:
        """Batch after batch, while there are full ones; how many rows. The last value of the query is its size."""
        total = 0
        while True:
            deleted = await delete(query, [*values, self._batch])
            total += deleted
            if deleted < self._batch:
                return total
            await asyncio.sleep(0)

    async def _delete(self, query: str, values: Sequence[object]) -> int:
        async with transaction(self._pool) as conn:
            return (await conn.execute(query.encode(), values)).rowcount

    async def _forget(self, query: str, values: Sequence[object]) -> int:
        """Delete deliveries, and events of which none is left."""
        async with transaction(self._pool) as conn:
            freed = await (await conn.execute(query.encode(), values)).fetchall()
            await _release(conn, freed)
        return len(freed)

    async def _look_for_events(self) -> None:
        """Delete what two deletions at once left, each for the other's sake: one batch of old events, the next ones
        with each sweep, and from the beginning again."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT stored_at, project_id, event_id FROM delivered_events"
                " WHERE (stored_at, project_id, event_id) > (%s, %s, %s) AND stored_at < %s"
                " ORDER BY stored_at, project_id, event_id LIMIT %s",
                [*self._looked, self._clock.now() - self._keep, self._batch],
            )
            found = await cursor.fetchall()
            await _release(conn, [row[1:] for row in found])
        self._looked = found[-1] if len(found) == self._batch else _START


async def _release(conn: Connection, pairs: Sequence[tuple[Any, ...]]) -> None:
    """Delete the events among these that have no delivery."""
    if pairs:
        projects, events = zip(*set(pairs), strict=True)
        await conn.execute(_WITHOUT_DELIVERY, [list(projects), list(events)])
