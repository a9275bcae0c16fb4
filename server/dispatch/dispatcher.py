"""A worker's part in delivering events: all of it, started in the order of dependence and drained in the reverse.

stream ──▶ Intake ──▶ ledger ◀──▶ Starter          Lease: what runs here is this process's
             └──▶ Runs ◀──────────┘                Holds: what waits for paused triggers
                    └──▶ Outcomes ──▶ ledger       Backfills: events of the past for new triggers
"""

from functools import partial
from typing import Final

from server.clock import Clock
from server.dispatch import consumer
from server.dispatch.backfills import Backfills
from server.dispatch.holds import Holds
from server.dispatch.intake import Intake
from server.dispatch.lease import LEASE_S, Lease
from server.dispatch.loops import Loops
from server.dispatch.outcomes import Outcomes
from server.dispatch.replay import TOPIC
from server.dispatch.room import Room
from server.dispatch.runs import Invokes, Runs, StartsWorkflows
from server.dispatch.starter import Starter, Triggers
from server.events.bus import EventBus
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.settings import Settings
from server.telemetry.metrics import Metrics

SLOTS: Final = 128
"""Deliveries that one process runs at a time; a quarter of them of one trigger whose runs are not quick, as many as one
project has sandboxes."""

BUSY: Final = 4
"""With more than one in so many slots taken, throughput goes before the latency of single outcomes."""

DRAIN_S: Final = 6.0
MOST_COUNTED: Final = 100_000


class Dispatcher:
    def __init__(
        self,
        *,
        bus: EventBus,
        settings: Settings,
        pool: Pool,
        changes: Changes,
        triggers: Triggers,
        invoker: Invokes,
        workflows: StartsWorkflows | None = None,
        metrics: Metrics | None = None,
        slots: int = SLOTS,
        lease_s: float = LEASE_S,
        clock: Clock | None = None,
    ) -> None:
        """Subscribes to `changes`: make it before they start."""
        self._pool = pool
        self._metrics = metrics = metrics or Metrics()
        self._room = Room(slots)
        self._outcomes = Outcomes(
            pool, lambda delay_s: self._starter.ended(delay_s), lambda: self._room.taken > slots // BUSY
        )
        loops = Loops(pool, settings.max_event_depth, metrics=metrics)
        self._runs = Runs(invoker, workflows, self._outcomes, self._room, loops=loops, metrics=metrics, clock=clock)
        self._lease = Lease(
            pool, known=self._runs.known, found=lambda: self._starter.wake(), lease_s=lease_s, clock=clock
        )
        self._starter = Starter(pool, triggers, partial(consumer.progress, bus), self._lease, self._room, self._runs)
        self._holds = Holds(pool, self._starter.wake)
        self._intake = Intake(
            bus,
            settings,
            pool,
            triggers,
            self._lease,
            self._room,
            self._runs,
            self._starter,
            metrics=metrics,
            clock=clock,
        )
        self._backfills = Backfills(pool, bus, changes, triggers, self._lease, self._starter)
        for topic in (TOPIC, "trigger"):
            changes.subscribe(topic, lambda _: self._woken(), self._woken)

    def __repr__(self) -> str:
        return f"<Dispatcher {self._room!r}>"

    async def start(self) -> None:
        """Working, once `changes` are heard. Unavailable while the database is away; NATS may be."""
        await self._lease.start()
        for part in (self._outcomes, self._starter, self._holds, self._backfills, self._intake):
            await part.start()

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Take nothing more; let runs end for that long, then end them and give them back. All that ended is written,
        if the database is there."""
        for part in (self._intake, self._backfills, self._holds, self._starter):
            await part.close()
        await self._runs.close(drain_s)
        await self._outcomes.close()
        await self._lease.close()

    async def sample(self) -> None:
        """Tell operators what runs and what waits; each process a share of that, so that all are told once."""
        self._metrics.deliveries_running().set(self._room.taken)
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT (SELECT count(*) FROM (SELECT FROM deliveries WHERE state = 'queued' AND order_key IS NULL"
                " LIMIT %(most)s) AS found) + (SELECT count(*) FROM (SELECT FROM deliveries WHERE order_key IS NOT NULL"
                " AND state IN ('queued', 'running', 'held') AND state = 'queued' LIMIT %(most)s) AS found),"
                " (SELECT count(*) FROM dispatch_leases WHERE expires_at > now())",
                {"most": MOST_COUNTED},
            )
            ((queued, workers),) = await cursor.fetchall()
        self._metrics.deliveries_queued().set(queued / max(1, workers))

    def _woken(self) -> None:
        self._starter.wake()
        self._holds.wake()
        self._backfills.wake()
