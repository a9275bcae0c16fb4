"""A delivery that is not to run, or no longer: it ends as cancelled, and nothing but a replay runs it again.

queued, held   ──▶ cancelled at once
running        ──▶ its run is ended, wherever it runs ──▶ its worker writes how, or after SETTLE_S we do
"""

import asyncio
from typing import Final, Protocol

from psycopg.types.json import Json

from engines.contract import Outcome
from server.dispatch.deliveries import read
from server.dispatch.delivery import Delivery
from server.dispatch.ledger import LOST
from server.dispatch.replay import TOPIC
from server.errors import FailedPrecondition, Unavailable
from server.fields import parse_id
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction
from server.runs.record import RunRecord

TRIES: Final = 4
"""At some 0.4 s each: an attempt may be between the ledger and a sandbox."""

SETTLE_S: Final = 1.0
"""For the worker to write how the run ended."""

LOOK_EVERY_S: Final = 0.02

_MESSAGE: Final = "The delivery was cancelled"

_WAITING: Final = """
UPDATE deliveries SET state = 'cancelled', lease = NULL, finished_at = now(), error = %s
WHERE id = %s AND state IN ('queued', 'held')
"""
_ENDED: Final = """
UPDATE deliveries SET state = 'cancelled', lease = NULL, finished_at = now(), error = %(error)s, outcome = %(outcome)s,
  history = history || jsonb_build_object('attempt', attempts, 'run_id', run_id, 'began_at', began_at,
    'ended_at', now(), 'outcome', %(outcome)s::text, 'reason', 'CANCELLED', 'message', %(message)s::text)
WHERE id = %(id)s AND state = 'running' AND run_id = %(run_id)s
"""
_ABANDONED: Final = """
SELECT 1 FROM deliveries d WHERE id = %s AND state = 'running' AND run_id = %s
  AND NOT EXISTS (SELECT 1 FROM dispatch_leases l WHERE l.id = d.lease AND l.expires_at > now())
"""


class Ends(Protocol):
    """Ends runs wherever they run: `server.runs.peers.Peers`."""

    async def cancel(self, project_id: str, run_id: str) -> RunRecord | None: ...


class Canceller:
    def __init__(self, pool: Pool, changes: Changes, runs: Ends, *, settle_s: float = SETTLE_S) -> None:
        self._pool = pool
        self._changes = changes
        self._runs = runs
        self._settle_s = settle_s

    async def cancel(self, project_id: str, delivery_id: str) -> Delivery:
        """End it; the delivery when it has ended. FailedPrecondition when it was finished before that, NotFound."""
        delivery_id = parse_id("delivery_id", delivery_id)
        for _ in range(TRIES):
            found = await self._withdraw(project_id, delivery_id)
            if found.state == "running":
                found = await self._end(found)
            if found.state == "cancelled":
                return found
        raise Unavailable(
            f"The delivery {delivery_id} is held by a server that does not answer; try again",
            reason="DELIVERY_NOT_ENDED",
            metadata={"delivery_id": delivery_id},
            retry_after_ms=5_000,
        )

    async def _withdraw(self, project_id: str, delivery_id: str) -> Delivery:
        """Cancelled if it waits; else as it is. FailedPrecondition when it is finished."""
        async with transaction(self._pool) as conn:
            found = await read(conn, project_id, delivery_id, lock=True)
            if found.state in ("done", "dead", "skipped", "cancelled"):
                raise _finished(found)
            if found.state == "running":
                return found
            error = Json({"reason": "CANCELLED", "message": _MESSAGE})
            await conn.execute(_WAITING, [error, found.id])
            return await self._changed(conn, found)

    async def _end(self, running: Delivery) -> Delivery:
        """The delivery once its attempt is over, or as it is when that could not be ended."""
        assert running.run_id is not None
        ended = await self._runs.cancel(running.project_id, running.run_id)
        if ended is not None and ended.outcome != Outcome.CANCELLED:
            return await self._settled(running)  # it was quicker, and its worker writes so
        if ended is not None:
            await self._settled(running)
            return await self._close(running, Outcome.CANCELLED)
        return await self._close(running, LOST) if await self._abandoned(running) else await self._settled(running)

    async def _settled(self, running: Delivery) -> Delivery:
        """The delivery when its attempt is written, or as it is after a while."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._settle_s
        while True:
            async with transaction(self._pool) as conn:
                found = await read(conn, running.project_id, running.id)
            if found.state != "running" or found.run_id != running.run_id or loop.time() >= deadline_s:
                return found
            await asyncio.sleep(LOOK_EVERY_S)

    async def _close(self, running: Delivery, outcome: str) -> Delivery:
        """Cancelled, unless another attempt began or it is finished."""
        async with transaction(self._pool) as conn:
            told = {"outcome": outcome, "message": _MESSAGE, "id": running.id, "run_id": running.run_id}
            error = Json({"reason": "CANCELLED", "message": _MESSAGE})
            await conn.execute(_ENDED, {**told, "error": error})
            return await self._changed(conn, running)

    async def _abandoned(self, running: Delivery) -> bool:
        """Whether the lease of its worker is over, which then has died."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(_ABANDONED, [running.id, running.run_id])
            return await cursor.fetchone() is not None

    async def _changed(self, conn: Connection, before: Delivery) -> Delivery:
        """As it is now; others may start in its place."""
        await self._changes.announce(conn, TOPIC, before.project_id)
        return await read(conn, before.project_id, before.id)


def _finished(found: Delivery) -> FailedPrecondition:
    return FailedPrecondition(
        f"The delivery {found.id} is finished already: {found.state}",
        reason="DELIVERY_FINISHED",
        metadata={"delivery_id": found.id, "state": found.state},
    )
