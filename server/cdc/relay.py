"""From the replication slot into the stream of events, in every worker, at work in one.

    claim the slot ─▶ stand by ── nobody has it ──▶ stream ─▶ tell gaps ─▶ read the stream's last change ─▶ pump
         ▲                                                                                                   │
         ╰──────── whatever ends: Postgres away, another relay, a transaction that cannot be decoded ────────╯

The slot admits one reader, which is all there is of an election. Changes are confirmed to Postgres only once they are
stored, a transaction as a whole; so a relay may die at any time. While NATS is away changes wait in Postgres.
"""

import asyncio
import time
from typing import Final

import psycopg
from psycopg import AsyncConnection

from server.cdc import gaps, slot
from server.cdc.changes import Changes, TooManyTables
from server.cdc.fairness import Fairness
from server.cdc.link import Link
from server.cdc.outlet import Outlet, TooSmall
from server.cdc.pump import UNREADABLE, Pump
from server.cdc.strikes import Strikes
from server.events import stream
from server.events.bus import EventBus
from server.log import logger
from server.postgres.channel import ConnectionLost, SqlError
from server.postgres.publication import NotPublishable
from server.postgres.tenants import Tenants
from server.settings import Settings
from server.tasks import end_task, unheard
from server.telemetry.metrics import Metrics

log = logger("cdc")

STAND_BY_S: Final = 0.25
"""Between looks at a slot that another relay has."""

CLAIM_S: Final = 10.0
"""How long a slot that is being made waits for transactions of tenants, each time before the oldest is ended."""

SAMPLE_S: Final = 1.0
PUBLISH_S: Final = 60.0
"""Between looks for schemas that are not published, because their tables were in use when they should have been."""

BACKOFF_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0)
UNFIT_S: Final = 30.0
"""Between tries when somebody has to change a setting first."""


class Relay:
    def __init__(self, tenants: Tenants, bus: EventBus, settings: Settings, metrics: Metrics) -> None:
        self._tenants = tenants
        self._outlet = Outlet(bus, settings)
        self._metrics = metrics
        self._strikes = Strikes()
        self._fairness = Fairness(metrics)
        self._noted_s = 0.0
        self._attempt = 0
        self._told = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._go_on(), name="cdc relay")

    async def close(self) -> None:
        """Stop; what was not stored is read again, here or by another worker."""
        if self._task is not None:
            await end_task(self._task)

    async def _go_on(self) -> None:
        while True:
            pause_s = BACKOFF_S[min(self._attempt, len(BACKOFF_S) - 1)]
            self._attempt += 1
            try:
                await self._turn()
            except (NotPublishable, TooSmall) as why:
                self._say(f"There are no events of tables: {why}")
                pause_s = UNFIT_S
            except (ConnectionLost, SqlError, psycopg.Error, TooManyTables, *stream.AWAY) as why:
                self._say(f"Changes wait in Postgres: {why!r}")
            except Exception:
                log.exception("cdc.fault", "The relay of changes failed; it goes on")
            await asyncio.sleep(pause_s)

    def _say(self, text: str) -> None:
        """Once, until it is something else."""
        if text != self._told:
            log.warning("cdc.waiting", text)
        self._told = text

    async def _turn(self) -> None:
        """Until something ends it."""
        await self._publish()
        async with self._tenants.admin() as admin:
            await self._strikes.skip(admin)
            name = await self._claim(admin)
            if not await _stand_by(admin, name):
                self._attempt = 0
                return
            try:
                link = await Link.open(self._tenants, name)
            except SqlError as why:
                if why.sqlstate != slot.IN_USE:
                    raise
                self._attempt = 0  # another was quicker
                return
            try:
                await self._look(admin, name)
                await self._stream(admin, link, name)
            finally:
                self._gauge(None)
                await link.close()

    async def _publish(self) -> None:
        try:
            await self._tenants.publish()
        except NotPublishable:
            async with self._tenants.admin() as admin:
                await self._fairness.release_all(admin)
            raise

    async def _claim(self, admin: AsyncConnection) -> str:
        """A tenant's open transaction cannot keep a slot from being made for long."""
        claiming = asyncio.create_task(slot.claim(admin))
        try:
            while not (await asyncio.wait((claiming,), timeout=CLAIM_S))[0]:
                async with self._tenants.admin() as another:
                    await slot.end_pinning(another)
            return claiming.result()
        finally:
            await end_task(claiming)

    async def _stream(self, admin: AsyncConnection, link: Link, name: str) -> None:
        pump = Pump(link, self._outlet, self._metrics)
        changes: Changes | None = None

        async def run() -> None:
            nonlocal changes
            await gaps.tell(admin, self._outlet, self._metrics)
            last = await self._outlet.last()
            changes = Changes(name, last, most_bytes=self._outlet.most_bytes, sealer=self._tenants.sealer)
            log.info("cdc.streaming", "Changes of tables become events here", slot=name, after=str(last))
            self._attempt, self._told = 0, ""
            await pump.run(changes, lambda oids: slot.base_types(admin, oids))

        tasks = [
            asyncio.create_task(work) for work in (run(), self._watch(admin, link, pump, name), self._keep_published())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        except UNREADABLE as why:
            if changes is not None:
                self._strikes.count(why, name, changes)
            raise
        finally:
            for task in tasks:
                task.add_done_callback(unheard)
            await end_task(*tasks)

    async def _keep_published(self) -> None:
        while True:
            await asyncio.sleep(PUBLISH_S)
            await self._tenants.publish()

    async def _watch(self, admin: AsyncConnection, link: Link, pump: Pump, name: str) -> None:
        """The server hears from us, and operators from it."""
        while True:
            link.confirm(pump.confirmed)
            await asyncio.sleep(await self._look(admin, name))

    async def _look(self, admin: AsyncConnection, name: str) -> float:
        """Keep any tenant from losing the slot for all; seconds until the next look."""
        standing = await slot.standing(admin, name)
        self._gauge(standing)
        if standing is None:
            return SAMPLE_S
        if standing.stale and time.monotonic() - self._noted_s >= SAMPLE_S:
            self._noted_s = time.monotonic()
            await slot.note_running(admin)
        if standing.pinned:
            await slot.end_pinning(admin)
        return await self._fairness.look(admin, name, standing)

    def _gauge(self, standing: slot.Standing | None) -> None:
        self._metrics.cdc_lag_bytes().set(standing.lag_bytes if standing else 0)
        self._metrics.cdc_wal_held_bytes().set(standing.held_bytes if standing else 0)
        if standing is None:
            self._metrics.cdc_held().set(0)
        for state in slot.STATES:
            self._metrics.cdc_slot(state).set(float(standing is not None and standing.state == state))


async def _stand_by(admin: AsyncConnection, name: str) -> bool:
    """Until nobody has the slot; False when it is there no more, or lost."""
    while standing := await slot.standing(admin, name):
        if standing.state == "lost":
            break
        if not standing.active:
            return True
        await asyncio.sleep(STAND_BY_S)
    return False
