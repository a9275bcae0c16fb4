"""Steps that run in this process: their leases are renewed together, and those that are lost are ended here too.

A lease is lost when the run ended (cancelled, or another step failed), or when this process alone did not reach the
database for so long that somebody else took the step (`server.postgres.presence`).
"""

import asyncio
from collections.abc import Coroutine
from typing import Final

from server.errors import AtlasError
from server.log import logger
from server.postgres.control import Pool, transaction
from server.tasks import end_task
from server.workflows import queue
from server.workflows.queue import Claimed

log = logger("workflows")

RENEW_EVERY_S: Final = 4.0


class Claims:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._held: dict[str, tuple[Claimed, asyncio.Task[None]]] = {}
        self._lost: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        """Set when one has ended."""

    def __len__(self) -> int:
        return len(self._held)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._renew_for_ever(), name="leases on workflow steps")

    async def close(self, drain_s: float, then_s: float) -> None:
        """Let steps end for that long, then cancel them and wait `then_s` until each is given back."""
        await _ended_within(self._tasks(), drain_s)
        for task in self._tasks():
            task.cancel()
        await _ended_within(self._tasks(), then_s)
        if self._task is not None:
            await end_task(self._task)

    def hold(self, claimed: Claimed, work: Coroutine[object, object, None]) -> None:
        """Do the work of a step under its lease."""
        task = asyncio.create_task(work, name=f"workflow step {claimed.node_id} of {claimed.run_id}")
        self._held[claimed.lease] = claimed, task
        task.add_done_callback(lambda done: self._ended(claimed, done))

    def is_lost(self, lease: str) -> bool:
        """Whether it was found to be lost, so that there is nothing to be given back."""
        return lease in self._lost

    def end_run(self, run_id: str) -> None:
        """The run ended elsewhere: end its steps."""
        for claimed, _ in [*self._held.values()]:
            if claimed.run_id == run_id:
                self._lose(claimed.lease)

    async def renew(self) -> None:
        if not self._held:
            return
        asked = [*self._held]
        async with transaction(self._pool) as conn:
            held = await queue.renew(conn, asked)
        for lease in asked:
            if lease not in held:
                self._lose(lease)

    def _lose(self, lease: str) -> None:
        """Nothing happens when it has ended meanwhile."""
        if lease in self._held and lease not in self._lost:
            self._lost.add(lease)
            self._held[lease][1].cancel()

    def _ended(self, claimed: Claimed, task: asyncio.Task[None]) -> None:
        del self._held[claimed.lease]
        self._lost.discard(claimed.lease)
        self.changed.set()
        if not task.cancelled() and (why := task.exception()) is not None:
            log.error("workflows.fault", f"A step is left to its lease: {why!r}", run_id=claimed.run_id)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for _, task in self._held.values()]

    async def _renew_for_ever(self) -> None:
        away = False
        while True:
            await asyncio.sleep(RENEW_EVERY_S / (4 if away else 1))
            try:
                await self.renew()
                away = False
            except AtlasError as why:
                away = True
                log.warning("leases.late", f"Leases on workflow steps are not renewed: {why}", held=len(self))
            except Exception:
                log.exception("leases.fault", "Leases on workflow steps are not renewed", held=len(self))


async def _ended_within(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
