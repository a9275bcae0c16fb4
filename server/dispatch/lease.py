"""The lease of this process: as long as it is renewed, nobody else takes up what runs here.

One row for all that runs. Whoever finds another's lease run out removes it and queues what ran under it, if it may
(`server.postgres.presence`).
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final
from uuid import uuid4

import psycopg

from server.clock import Clock, SystemClock
from server.dispatch import ledger
from server.errors import AtlasError
from server.log import logger
from server.postgres.control import Connection, Pool, transaction
from server.postgres.presence import Presence
from server.tasks import end_task

log = logger("dispatch")

LEASE_S: Final = 15.0
RENEWALS: Final = 10
"""In the time of one lease."""


class Lease:
    def __init__(
        self,
        pool: Pool,
        *,
        known: Callable[[], Collection[str]],
        found: Callable[[], None],
        lease_s: float = LEASE_S,
        clock: Clock | None = None,
    ) -> None:
        """`known` are the ids of what really runs here; `found` is called when something was queued that was lost."""
        self._pool = pool
        self._known = known
        self._found = found
        self._suspects: set[str] = set()
        self._checked_at_s = float("-inf")
        self._lease_s = lease_s
        self._clock = clock or SystemClock()
        self._task: asyncio.Task[None] | None = None
        self._presence = Presence(self._clock, lease_s)
        self.id = ""
        """Under it this process claims; another one after it was lost."""

    async def start(self) -> None:
        """Held; Unavailable while the database is away."""
        await self._make()
        self._task = asyncio.create_task(self._renew_for_ever(), name="dispatch lease")

    async def close(self) -> None:
        """Given up: call it when nothing runs here any more. What could not be written is queued by others, soon."""
        if self._task is None:
            return
        await end_task(self._task)
        try:
            async with transaction(self._pool) as conn:
                await conn.execute("DELETE FROM dispatch_leases WHERE id = %s", [self.id])
        except AtlasError as why:
            log.warning("dispatch.lease", f"The lease of this process runs out by itself: {why}")

    async def renew(self) -> None:
        """Unavailable while the database is away."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "UPDATE dispatch_leases SET expires_at = now() + make_interval(secs => %s) WHERE id = %s",
                [self._lease_s, self.id],
            )
        self._presence.seen()
        if not cursor.rowcount:
            log.warning("dispatch.lease_lost", "Another worker has taken over what ran here", lease=self.id)
            await self._make()

    async def _make(self) -> None:
        made = str(uuid4())
        async with transaction(self._pool) as conn:
            await conn.execute(
                "INSERT INTO dispatch_leases (id, expires_at) VALUES (%s, now() + make_interval(secs => %s))",
                [made, self._lease_s],
            )
        self.id = made

    async def reap(self) -> None:
        """Queue what others have lost. Unavailable."""
        async with transaction(self._pool) as conn:
            await self._check(conn)
            lost = await ledger.lose(conn)
            if self._presence.is_steady and await ledger.bury(conn):
                lost += await ledger.lose(conn)
        if lost:
            log.warning("dispatch.lost", f"{lost} deliveries were lost with their worker and are queued", lost=lost)
            self._found()

    async def _check(self, conn: Connection) -> None:
        """What is said to run here and did not at two looks, a lease apart, does not: its claim was committed and the
        connection broke before that was known."""
        now_s = self._clock.monotonic_s()
        if now_s - self._checked_at_s < self._lease_s:
            return
        known = frozenset(self._known())
        strays = await ledger.running(conn, self.id) - known
        if gone := strays & self._suspects:
            await ledger.disown(conn, self.id, [*gone])
        self._suspects, self._checked_at_s = strays - gone, now_s

    async def _renew_for_ever(self) -> None:
        away = False
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS / (2 if away else 1))
            try:
                await self.renew()
                await self.reap()
                away = False
            except (AtlasError, psycopg.Error) as why:
                if not away:
                    log.warning("dispatch.lease", f"The lease of this process is not renewed: {why}")
                away = True
            except Exception:
                log.exception("dispatch.fault", "The lease of this process is not renewed")
