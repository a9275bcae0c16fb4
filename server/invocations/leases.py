"""Claims on rows that run out unless their process lives: renewed together, one statement a table.

A row's `lease` is the token of its claim. A claim whose process died is over after LEASE_S; one that was renewed in
vain, because the database was away for longer, may have been taken over, which its holder sees when it writes.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from server.errors import AtlasError
from server.log import logger
from server.postgres.control import Pool, transaction

log = logger("functions")

LEASE_S: Final = 15.0
RENEW_EVERY_S: Final = 4.0

_RENEW: Final = {
    "async_runs": "UPDATE async_runs SET due_at = now() + make_interval(secs => %s)"
    " WHERE lease = ANY(%s::uuid[]) AND state = 'running'",
    "idempotency_keys": "UPDATE idempotency_keys SET expires_at = now() + make_interval(secs => %s)"
    " WHERE lease = ANY(%s::uuid[])",
}


class Leases:
    def __init__(self, pool: Pool, table: Literal["async_runs", "idempotency_keys"]) -> None:
        self._pool = pool
        self._table = table
        self._held: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._renew_for_ever(), name=f"leases on {self._table}")

    async def close(self) -> None:
        """Renew no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @contextmanager
    def held(self, lease: str) -> Iterator[None]:
        """Renewed until the end of the block."""
        self._held.add(lease)
        try:
            yield
        finally:
            self._held.discard(lease)

    async def renew(self) -> None:
        if self._held:
            async with transaction(self._pool) as conn:
                await conn.execute(_RENEW[self._table].encode(), [LEASE_S, list(self._held)])

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self.renew()
            except AtlasError as why:
                log.warning("leases.late", f"Leases on {self._table} are not renewed: {why}", held=len(self._held))
            except Exception:
                log.exception("leases.fault", f"Leases on {self._table} are not renewed", held=len(self._held))
