"""Events that are committed with what they tell of: a transaction adds them to a table, workers relay them.

    writer   add(conn, events) in its transaction → COMMIT ─ announcement ─▶ relay: publish → delete, when acknowledged
                                          rolled back: nothing was ever there

Nothing committed is lost, and nothing is published that was rolled back. A project's events are published in the order
of its commits: ids are given under a lock of the project that ends with the transaction, and one relay has the project
at a time. A relay that dies after publishing has its batch published again under the same message ids, which JetStream
knows for two minutes; whoever reads the stream knows events by their ids anyway. While NATS is away, so many wait of a
project and no more: what would add another fails.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, Protocol

from server.errors import AtlasError, InvalidArgument, Unavailable
from server.events.envelope import MAX_EVENT_BYTES, Event, decode, encode
from server.log import logger
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction
from server.tasks import end_task
from server.telemetry.metrics import Metrics

log = logger("outbox")

NAME: Final = "storage"
"""What metrics call it."""

TOPIC: Final = "outbox"
BATCH: Final = 100
BATCH_BYTES: Final = 4 * 1024 * 1024
POLL_S: Final = 1.0
"""Between looks when nobody announces anything."""

MAX_WAITING: Final = 20_000
"""Events of a project. They are counted whenever one is added, which takes milliseconds when there are so many."""

MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""Of a project: a hundred of them that are full take 6.4 GB of the database's disk."""

RETRY_AFTER_MS: Final = 5_000

PROJECTS: Final = 4
"""Whose events one relay publishes at the same time; each takes a connection meanwhile."""

_ORDER: Final = 0x6F757462  # "outb": the first key of the advisory locks, a hash of the project the second
_PENDING: Final = """
WITH RECURSIVE pending AS (
  (SELECT project_id FROM event_outbox ORDER BY project_id LIMIT 1)
  UNION ALL
  SELECT (SELECT o.project_id FROM event_outbox o WHERE o.project_id > p.project_id ORDER BY o.project_id LIMIT 1)
  FROM pending p WHERE p.project_id IS NOT NULL
)
SELECT project_id FROM pending WHERE project_id IS NOT NULL
"""
_BATCH: Final = """
SELECT id, octet_length(envelope), (SELECT min(id) FROM event_outbox WHERE project_id = %(project_id)s)
FROM event_outbox WHERE project_id = %(project_id)s ORDER BY id LIMIT %(most)s FOR UPDATE SKIP LOCKED
"""
_WAITING: Final = """
SELECT count(*), coalesce(sum(octet_length(envelope)), 0)
FROM (SELECT envelope FROM event_outbox WHERE project_id = %s ORDER BY id LIMIT %s) AS waiting
"""


class Publishes(Protocol):
    """`server.events.publisher.Publisher`."""

    async def publish_in_order(self, events: Sequence[Event]) -> None: ...


class Outbox:
    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def add(self, conn: Connection, events: Sequence[Event]) -> None:
        """Publish them once `conn`'s transaction has committed. Add them last: other writers of the project wait.

        InvalidArgument for one that no stream takes, Unavailable as `require_room`.
        """
        envelopes = [_encoded(event) for event in events]
        for project_id in sorted({event.project_id for event in events}):
            own = [len(body) for event, body in zip(events, envelopes, strict=True) if event.project_id == project_id]
            await conn.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_ORDER, project_id])
            await self.require_room(conn, project_id, len(own), sum(own))
            await self._changes.announce(conn, TOPIC, project_id)
        for event, envelope in zip(events, envelopes, strict=True):
            await conn.execute(
                "INSERT INTO event_outbox (project_id, envelope) VALUES (%s, %s)", [event.project_id, envelope]
            )

    async def require_room(self, conn: Connection, project_id: str, events: int = 1, size_bytes: int = 0) -> None:
        """Unavailable when as many of the project wait as may. A look ahead, unless it is within `add`."""
        cursor = await conn.execute(_WAITING, [project_id, MAX_WAITING])
        ((count, total_bytes),) = await cursor.fetchall()
        if count + events > MAX_WAITING or total_bytes + size_bytes > MAX_WAITING_BYTES:
            raise Unavailable(
                f"{count} events of the project with {total_bytes} bytes wait to be published already; at most "
                f"{MAX_WAITING} with {MAX_WAITING_BYTES} bytes may wait: try again once they are in the stream",
                reason="OUTBOX_FULL",
                metadata={"waiting": str(count), "waiting_bytes": str(total_bytes)},
                retry_after_ms=RETRY_AFTER_MS,
            )


class Relay:
    """Publishes what was added; any number of processes have one."""

    def __init__(
        self,
        pool: Pool,
        changes: Changes,
        publisher: Publishes,
        *,
        metrics: Metrics | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        """Subscribes to `changes`: make it before they start."""
        self._pool = pool
        self._publisher = publisher
        self._metrics = metrics or Metrics()
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        changes.subscribe(TOPIC, lambda _: self._wake.set(), self._wake.set)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._relay_for_ever(), name="outbox relay")

    async def close(self) -> None:
        """Stop; a batch on its way is published again by whoever comes next."""
        if self._task is not None:
            await end_task(self._task)

    async def relay(self) -> int:
        """Publish all that is committed and that no other relay is at; how many. One project's trouble is its own."""
        async with transaction(self._pool) as conn:
            pending = [str(project_id) for (project_id,) in await (await conn.execute(_PENDING)).fetchall()]
        turn = asyncio.Semaphore(PROJECTS)

        async def of(project_id: str) -> int:
            async with turn:
                return await self._relay_project(project_id)

        return sum(await asyncio.gather(*(of(project_id) for project_id in pending)))

    async def _relay_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                if await self.relay():
                    continue
            except AtlasError as why:
                self._metrics.outbox_failures(NAME).add()
                log.warning("outbox.away", f"Committed events wait to be published: {why}")
            except Exception:
                self._metrics.outbox_failures(NAME).add()
                log.exception("outbox.fault", "Committed events wait to be published")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()

    async def _relay_project(self, project_id: str) -> int:
        count = 0
        try:
            while published := await self._relay_batch(project_id):
                count += published
        except AtlasError as why:
            self._metrics.outbox_failures(NAME).add()
            log.warning("outbox.waits", f"Committed events of a project wait: {why}", project_id=project_id)
        return count

    async def _relay_batch(self, project_id: str) -> int:
        """The project's oldest events; 0 when there is none, or another relay has them."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(_BATCH, {"project_id": project_id, "most": BATCH})
            ids = _head(await cursor.fetchall())
            if not ids:
                return 0
            cursor = await conn.execute("SELECT envelope FROM event_outbox WHERE id = ANY(%s) ORDER BY id", [ids])
            await self._publisher.publish_in_order([decode(bytes(envelope)) for (envelope,) in await cursor.fetchall()])
            await conn.execute("DELETE FROM event_outbox WHERE id = ANY(%s)", [ids])
        self._metrics.outbox_events(NAME, "published").add(len(ids))
        return len(ids)


def _head(rows: Sequence[Sequence[int]]) -> list[int]:
    """Ids of the first rows, of at most BATCH_BYTES but at least one; none unless they begin with the oldest of all."""
    ids: list[int] = []
    left = BATCH_BYTES
    for number, size, oldest in rows:
        if not ids and number != oldest:
            return []
        left -= size
        if ids and left < 0:
            break
        ids.append(number)
    return ids


def _encoded(event: Event) -> bytes:
    envelope = encode(event)
    if len(envelope) > MAX_EVENT_BYTES:
        raise InvalidArgument(
            None,
            f"The event {event.id} has {len(envelope)} bytes in the stream; at most {MAX_EVENT_BYTES} are allowed",
            reason="EVENT_TOO_LARGE",
            used=str(len(envelope)),
            allowed=str(MAX_EVENT_BYTES),
        )
    return envelope
