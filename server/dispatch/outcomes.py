"""How attempts ended, on its way into the ledger: written together, and tried again for as long as Postgres is away."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from server.dispatch import ledger
from server.dispatch.ledger import End
from server.errors import AtlasError
from server.log import logger
from server.postgres.control import Kept, Pool
from server.tasks import end_task

log = logger("dispatch")

AT_ONCE: Final = 500
GATHER_S: Final = 0.003
AGAIN_S: Final = 0.25
CLOSE_S: Final = 5.0


class Outcomes:
    def __init__(self, pool: Pool, written: Callable[[float], None], busy: Callable[[], bool] = lambda: False) -> None:
        """`written` is called when something was: with the least delay of what is to run again, else infinity. While
        `busy`, ends are let gather."""
        self._busy = busy
        self._kept = Kept(pool)
        self._written = written
        self._ends: list[End] = []
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Outcomes {len(self._ends)} to be written>"

    async def start(self) -> None:
        self._task = asyncio.create_task(self._write_for_ever(), name="delivery outcomes")

    async def close(self) -> None:
        """Write what there is, for at most CLOSE_S; the rest runs again, elsewhere."""
        if self._task is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._none.wait()
        await end_task(self._task)
        await self._kept.close()
        if self._ends:
            log.error("dispatch.unwritten", f"The ends of {len(self._ends)} deliveries are not written: they run again")

    def add(self, end: End) -> None:
        self._ends.append(end)
        self._none.clear()
        self._some.set()

    def unwritten(self) -> Iterator[str]:
        """The ids of the runs that ended."""
        return (end.run_id for end in self._ends)

    async def _write_for_ever(self) -> None:
        away = False
        while True:
            await self._some.wait()
            if self._busy():
                await asyncio.sleep(GATHER_S)
            try:
                await self._write(self._ends[:AT_ONCE])
                away = False
            except AtlasError as why:
                if not away:
                    log.warning("dispatch.unwritten", f"Ends of deliveries wait to be written: {why}")
                away = True
                await asyncio.sleep(AGAIN_S)
            except Exception:
                log.exception("dispatch.fault", "Ends of deliveries wait to be written")
                await asyncio.sleep(AGAIN_S)

    async def _write(self, ends: list[End]) -> None:
        async with self._kept.connection() as conn:
            written = await ledger.end(conn, ends)
        del self._ends[: len(ends)]
        if not self._ends:
            self._some.clear()
            self._none.set()
        if written < len(ends):
            ignored = len(ends) - written
            log.warning("dispatch.late", f"{ignored} attempts ended after they were lost or withdrawn", ended=ignored)
        self._written(min((end.delay_s for end in ends if end.state == "queued"), default=float("inf")))
