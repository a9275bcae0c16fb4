"""Nobody loses the slot for all: who writes faster than the relay publishes is held until the relay has caught up.

    calm ── an eighth of what the slot may hold waits ──▶ watching ── a project outruns (`server.cdc.backlog`) ──▶ held
     ▲                                                                                                              │
     ╰────────────────── half of what waited at that moment is published, or the slot is another ───────────────────╯

Holds outlive the relay, in `atlas.cdc_held`: whoever relays next ends them. What is known of the log is read again.
Where the server does not let us read its log, or close a role, it is said once, and the slot can be lost as ever.
"""

import time
from typing import Final

from psycopg import AsyncConnection, Error

from server.cdc.backlog import Backlog
from server.cdc.position import lsn_text, parse_lsn
from server.cdc.slot import Standing
from server.cdc.writers import Writers
from server.log import logger
from server.postgres import holds
from server.postgres.holds import Hold
from server.postgres.tenants import project_of
from server.telemetry.metrics import Metrics

log = logger("cdc")

WATCHED_PART: Final = 8
"""Of what the slot may hold: while so much waits, the log is read."""

CALM_S: Final = 1.0
WATCHING_S: Final = 0.05
"""Between looks."""

READ_S: Final = 0.25
"""Between readings of the log, while it is watched."""


class Fairness:
    """For one relay, while it has the slot."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._writers = Writers()
        self._backlog = Backlog()
        self._slot = ""
        self._read_s = 0.0
        self._warned = False

    async def look(self, admin: AsyncConnection, slot: str, standing: Standing) -> float:
        """Let in and keep out; seconds until the next look. psycopg.Error when the server is away."""
        try:
            held = await self._release(admin, slot, standing)
            if held:
                await holds.enforce(admin)
            watching = _watched(standing)
            if not watching:
                self._backlog.clear()
            elif time.monotonic() - self._read_s < READ_S:
                await self._writers.glance(admin)
            else:
                await self._read(admin, slot, standing)
                held |= await self._hold(admin, slot, standing, held)
                self._read_s = time.monotonic()
                self._warned = False
            self._metrics.cdc_held().set(len(held))
            return WATCHING_S if watching else CALM_S
        except Error as why:
            if admin.closed:
                raise
            if not self._warned:
                log.warning(
                    "cdc.unfair",
                    f"A tenant that outruns change capture cannot be held, and can lose everybody's changes: {why}",
                )
            self._warned = True
            return CALM_S

    async def release_all(self, admin: AsyncConnection) -> None:
        """Nothing is captured any more."""
        for hold in await holds.held(admin):
            await self._let_in(admin, hold)

    async def _release(self, admin: AsyncConnection, slot: str, standing: Standing) -> set[str]:
        """Those that are over; the roles of those that are not."""
        held = await holds.held(admin)
        left: set[str] = set()
        for hold in held:
            over = hold.slot != slot or parse_lsn(hold.until) <= standing.confirmed_lsn
            if not (over and await self._let_in(admin, hold)):
                left.add(hold.role)
        return left

    async def _let_in(self, admin: AsyncConnection, hold: Hold) -> bool:
        if not await holds.release(admin, hold.role):
            return False
        log.info(
            "cdc.released",
            "A project may use its database again: changes are published up to where it was held",
            project_id=project_of(hold.role),
        )
        return True

    async def _read(self, admin: AsyncConnection, slot: str, standing: Standing) -> None:
        """What was written since the last look; all that waits, when this is the first of the slot."""
        if slot != self._slot:
            self._backlog.clear()
        self._slot = slot
        self._backlog.confirm(standing.confirmed_lsn)
        since = max(self._backlog.until, standing.confirmed_lsn)
        if standing.flushed_lsn > since:
            first = not self._backlog.until
            stretch = await self._writers.read(admin, since, standing.flushed_lsn, first=first)
            if stretch is not None:
                self._backlog.add(stretch)

    async def _hold(self, admin: AsyncConnection, slot: str, standing: Standing, held: set[str]) -> set[str]:
        allowed, free = standing.allowed_bytes, standing.safe_bytes
        assert allowed is not None
        assert free is not None
        waiting = self._backlog.bytes_by_role()
        until = standing.confirmed_lsn + (standing.flushed_lsn - standing.confirmed_lsn) // 2
        added: set[str] = set()
        for role in self._backlog.outrunning(held, free=free, allowed=allowed):
            if not await holds.hold(admin, Hold(role, slot, lsn_text(until))):
                continue
            added.add(role)
            self._metrics.cdc_holds().add()
            log.warning(
                "cdc.held",
                "A project writes faster than its changes are published. Its sessions were ended, and it is kept out "
                "of its database until half of what waits is published: else everybody's changes would be lost",
                project_id=project_of(role),
                project_bytes=round(waiting[role]),
                free_bytes=free,
                allowed_bytes=allowed,
            )
        return added


def _watched(standing: Standing) -> bool:
    allowed = standing.allowed_bytes
    return allowed is not None and standing.lag_bytes > allowed / WATCHED_PART
