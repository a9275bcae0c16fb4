"""Events held for paused triggers: let go when their trigger goes on, cancelled when it is gone."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from server.dispatch import ledger
from server.errors import AtlasError
from server.log import logger
from server.postgres.control import Pool, transaction
from server.tasks import end_task

log = logger("dispatch")

LOOK_S: Final = 1.0


class Holds:
    def __init__(self, pool: Pool, released: Callable[[], None]) -> None:
        """`released` is called when there is something to start."""
        self._pool = pool
        self._released = released
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        self._wake.set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._look_for_ever(), name="held deliveries")

    async def close(self) -> None:
        if self._task is not None:
            await end_task(self._task)

    async def look(self) -> None:
        """Let go of all whose trigger is not paused: a batch of each in turn, so that a million of one delay no other,
        nor one that goes on meanwhile. Unavailable."""
        more = True
        while more:
            async with transaction(self._pool) as conn:
                found = await ledger.held(conn)
            more = any([await self._release(*each) for each in found])

    async def _release(self, trigger_id: str, enabled: bool) -> bool:
        """A batch; whether there may be more."""
        async with transaction(self._pool) as conn:
            changed = await ledger.release(conn, trigger_id, enabled=enabled)
        if changed and enabled:
            self._released()
        return changed == ledger.BATCH

    async def _look_for_ever(self) -> None:
        away = False
        while True:
            self._wake.clear()
            try:
                await self.look()
                away = False
            except AtlasError as why:
                if not away:
                    log.warning("dispatch.held", f"Held deliveries wait: {why}")
                away = True
            except Exception:
                log.exception("dispatch.fault", "Held deliveries wait")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
