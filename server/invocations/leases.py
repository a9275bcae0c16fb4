"""Claims on rows that run out unless their process lives: renewed together, one statement a table.

A row's `lease` is the token of its claim. One that is over is removed by whoever may (`server.postgres.presence`): then
its process died, or did not reach the database for longer while others did, which it sees when it writes.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from server.clock import SystemClock
from server.errors import AtlasError
from server.log import logger
from server.postgres.control import Pool, transaction
from server.postgres.presence import Presence
from server.tasks import end_task

log = logger("functions")

LEASE_S: Final = 15.0
RENEW_EVERY_S: Final = 3.0
BURY_BATCH: Final = 1_000

_RENEW: Final = {
    "async_runs": "UPDATE async_runs SET due_at = now() + make_interval(secs => %s)"
    " WHERE lease = ANY(%s::uuid[]) AND state = 'running'",
    "idempotency_keys": "UPDATE idempotency_keys SET expires_at = now() + make_interval(secs => %s)"
    " WHERE lease = ANY(%s::uuid[])",
}
_BURY: Final = {
    "async_runs": "WITH lost AS (UPDATE async_runs SET state = 'queued', lease = NULL WHERE id IN (SELECT id"
    " FROM async_runs WHERE lease IS NOT NULL AND state = 'running' AND due_at <= now()"
    " LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id)"
    " UPDATE runs SET state = 'queued' FROM lost WHERE runs.id = lost.id AND runs.state = 'running'",
    "idempotency_keys": "UPDATE idempotency_keys SET lease = NULL WHERE (project_id, slug, key) IN (SELECT project_id,"
    " slug, key FROM idempotency_keys WHERE lease IS NOT NULL AND expires_at <= now()"
    " LIMIT %s FOR UPDATE SKIP LOCKED)",
}


class Leases:
    def __init__(self, pool: Pool, table: Literal["async_runs", "idempotency_keys"]) -> None:
        self._pool = pool
        self._table = table
        self._held: set[str] = set()
        self._presence = Presence(SystemClock(), LEASE_S)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._renew_for_ever(), name=f"leases on {self._table}")

    async def close(self) -> None:
        """Renew no more."""
        if self._task is not None:
            await end_task(self._task)

    @contextmanager
    def held(self, lease: str) -> Iterator[None]:
        """Renewed until the end of the block."""
        self._held.add(lease)
        try:
            yield
        finally:
            self._held.discard(lease)

    async def renew(self) -> None:
        """What is held here; and remove what others lost. Unavailable."""
        async with transaction(self._pool) as conn:
            await conn.execute(_RENEW[self._table].encode(), [LEASE_S, list(self._held)])
            if self._presence.is_steady:
                await conn.execute(_BURY[self._table].encode(), [BURY_BATCH])
        self._presence.seen()

    async def _renew_for_ever(self) -> None:
        away = False
        while True:
            await asyncio.sleep(RENEW_EVERY_S / (4 if away else 1))
            try:
                await self.renew()
                away = False
            except AtlasError as why:
                away = True
                log.warning("leases.late", f"Leases on {self._table} are not renewed: {why}", held=len(self._held))
            except Exception:
                log.exception("leases.fault", f"Leases on {self._table} are not renewed", held=len(self._held))
