"""The outbox of runs: events that were committed with a run's changes in the tenants database, on their way to NATS.

    atlas_kept.outbox ─▶ publish, acknowledged ─▶ DELETE, in one transaction under a lock: one worker at a time

Of a project they are published in the order in which they were written; each once: what dies between acknowledgement
and DELETE publishes it again under the same message id, which JetStream knows for `stream.DUPLICATE_WINDOW_S`, and
after that its deliveries know it by its id. An event that NATS never takes is set aside, with the reason, for
KEEP_DAYS.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import psycopg
from nats.aio.msg import Msg
from psycopg import AsyncConnection

from server.errors import InvalidArgument, Unavailable
from server.events import stream
from server.events.batches import FEW
from server.events.bus import EventBus
from server.events.envelope import Event, decode
from server.events.publisher import Publisher
from server.log import logger
from server.postgres import effects
from server.postgres.tenants import Tenants, schema_of
from server.tasks import end_task
from server.telemetry.metrics import Metrics

log = logger("events")

NAME: Final = "functions"
"""What metrics call it."""

WAKE: Final = "atlas.run_outbox"
"""NATS subject, outside of any stream."""

POLL_S: Final = 1.0
PAUSE_S: Final = 1.0
"""After a failure."""

BATCH: Final = 200
BATCH_OF_PROJECT: Final = 100
BATCH_BYTES: Final = 8 * 1024 * 1024
LOCK_KEY: Final = 0x61746C6F
"""Of the advisory lock of who relays ("atlo")."""

KEEP_DAYS: Final = 30.0
"""Of marks, and of events that were set aside."""

SWEEP_S: Final = 3600.0

ROLES: Final = """
WITH RECURSIVE roles AS (
  (SELECT role FROM atlas_kept.outbox WHERE refused IS NULL ORDER BY role LIMIT 1)
  UNION ALL
  SELECT (
    SELECT o.role FROM atlas_kept.outbox AS o
    WHERE o.role > roles.role AND o.refused IS NULL ORDER BY o.role LIMIT 1
  ) FROM roles WHERE role IS NOT NULL
)
"""
"""Of projects whose events wait; the last is null."""

_WAITING: Final = f"""
{ROLES}
SELECT sequence, role, event FROM (
  SELECT *, sum(octet_length(event)) OVER (ORDER BY place, sequence) - octet_length(event) AS before
  FROM (
    SELECT sequence, role, event, place FROM roles CROSS JOIN LATERAL (
      SELECT sequence, event, row_number() OVER (ORDER BY sequence) AS place FROM atlas_kept.outbox AS o
      WHERE o.role = roles.role AND refused IS NULL ORDER BY sequence LIMIT %s
    ) AS own
    ORDER BY place, sequence LIMIT %s
  ) AS first
) AS counted
WHERE before < %s ORDER BY sequence
"""
"""The first of each project, then the second of each, …: none waits for the many of another."""


async def wake(bus: EventBus) -> None:
    """Tell the workers that something was committed. Best effort."""
    with suppress(*stream.AWAY):
        await bus.client.publish(WAKE)


class Relay:
    """Of one worker."""

    def __init__(
        self,
        tenants: Tenants,
        bus: EventBus,
        publisher: Publisher,
        *,
        metrics: Metrics | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._tenants = tenants
        self._bus = bus
        self._publisher = publisher
        self._metrics = metrics or Metrics()
        self._poll_s = poll_s
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        async def on_wake(_: Msg) -> None:
            self._woken.set()

        await self._bus.client.subscribe(WAKE, cb=on_wake)
        self._task = asyncio.create_task(self._go_on(), name="relaying events of runs")

    async def close(self) -> None:
        if self._task is not None:
            await end_task(self._task)

    async def _go_on(self) -> None:
        while True:
            try:
                async with self._tenants.admin() as admin:
                    await self._serve(admin)
            except (psycopg.Error, Unavailable) as why:
                log.warning("run_outbox.waiting", f"Events of runs cannot be published now: {why}")
            except Exception:
                log.exception("run_outbox.failed", "Relaying events of runs failed; it is tried again")
            self._metrics.outbox_failures(NAME).add()
            await asyncio.sleep(PAUSE_S)

    async def _serve(self, admin: AsyncConnection) -> None:
        swept_s = asyncio.get_running_loop().time()
        while True:
            self._woken.clear()
            while await relay(admin, self._publisher, self._metrics):
                pass
            if asyncio.get_running_loop().time() - swept_s > SWEEP_S:
                swept_s = asyncio.get_running_loop().time()
                await effects.sweep(admin, KEEP_DAYS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._poll_s)


async def relay(admin: AsyncConnection, publisher: Publisher, metrics: Metrics | None = None) -> int:
    """Publish and remove what waits, or the first part of it; how many. 0 also while another worker does it.

    psycopg.Error, and Unavailable while NATS is away: then all of it waits on.
    """
    async with admin.transaction():
        cursor = await admin.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK_KEY])
        if await cursor.fetchone() != (True,):
            return 0
        cursor = await admin.execute(_WAITING, [BATCH_OF_PROJECT, BATCH, BATCH_BYTES])
        rows = await cursor.fetchall()
        by_role: dict[str, list[tuple[int, Event]]] = defaultdict(list)
        refused: list[tuple[int, str]] = []
        for sequence, role, text in rows:
            try:
                by_role[role].append((sequence, _event(role, text)))
            except InvalidArgument as why:
                refused.append((sequence, why.message))
        for more in await asyncio.gather(*(_publish(publisher, events) for events in by_role.values())):
            refused += more
        await _remove(admin, [row[0] for row in rows], refused)
    if metrics is not None:
        metrics.outbox_events(NAME, "published").add(len(rows) - len(refused))
        metrics.outbox_events(NAME, "refused").add(len(refused))
    return len(rows)


async def _publish(publisher: Publisher, events: Sequence[tuple[int, Event]]) -> list[tuple[int, str]]:
    """As a whole or one after the other, so that none overtakes; those that NATS never takes, and why."""
    if len(events) > FEW and await publisher.publish_whole([event for _, event in events]):
        return []
    refused: list[tuple[int, str]] = []
    for sequence, event in events:
        try:
            await publisher.publish([event])
        except InvalidArgument as why:
            refused.append((sequence, why.message))
    return refused


async def _remove(admin: AsyncConnection, sequences: Sequence[int], refused: Sequence[tuple[int, str]]) -> None:
    for sequence, why in refused:
        log.error("run_outbox.refused", f"An event of a run is set aside: {why}", sequence=sequence)
        await admin.execute(
            "UPDATE atlas_kept.outbox SET refused = %s, refused_at = now() WHERE sequence = %s", [why, sequence]
        )
    if sequences:
        await admin.execute(
            "DELETE FROM atlas_kept.outbox WHERE sequence = ANY(%s) AND refused IS NULL", [list(sequences)]
        )


def _event(role: str, text: str) -> Event:
    event = decode(text.encode())
    if schema_of(event.project_id) != role:
        raise InvalidArgument("project_id", f"The event is of project {event.project_id}, its row of {role}")
    return event
