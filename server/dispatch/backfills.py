"""Events of the past for triggers that were created with `start_from`: read in order, and queued like any other.

    waiting ──▶ the trigger is in force everywhere ──▶ note the end of the stream ──▶ some at a time up to it ──▶ done
                                                                                     └ disabled: stopped

Every event after the noted end meets the trigger as it comes; every one before it is met here; one that is met twice is
one delivery. What is queued and how far it is are written together, so that another process goes on where one ended.
It works half of the time at most: live events come first.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import uuid4

from psycopg.rows import class_row

from server.dispatch import ledger
from server.dispatch.identity import delivery_id
from server.dispatch.lease import Lease
from server.dispatch.ledger import Body, Pair, body_of
from server.dispatch.order import order_key, order_path
from server.dispatch.starter import Starter, Triggers
from server.errors import AtlasError, InvalidArgument
from server.events import stream
from server.events.bus import EventBus
from server.events.history import History, Past
from server.log import logger
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.tasks import end_task
from server.triggers.definition import Trigger
from server.triggers.firing import fires, pattern_of, seen_by
from server.triggers.view import envelope_of

log = logger("dispatch")

LOOK_S: Final = 1.0
AT_ONCE: Final = 4
"""Of one process."""

TURN_S: Final = 10.0
"""After which one is handed back, to be taken up again when no other has waited for longer."""

_CLAIM: Final = """
UPDATE trigger_backfills SET owner = %(lease)s, turn_at = clock_timestamp() WHERE trigger_id = (
  SELECT trigger_id FROM trigger_backfills b
  WHERE state = 'running' AND NOT EXISTS (SELECT FROM dispatch_leases l WHERE l.id = b.owner)
  ORDER BY (
    SELECT count(*) FROM trigger_backfills o JOIN dispatch_leases l ON l.id = o.owner
    WHERE o.project_id = b.project_id AND o.state = 'running'
  ), coalesce(turn_at, created_at) LIMIT 1 FOR UPDATE SKIP LOCKED)
AND EXISTS (SELECT FROM dispatch_leases WHERE id = %(lease)s)
RETURNING trigger_id, project_id, start_from, next_sequence, last_sequence
"""
_MOVE: Final = """
UPDATE trigger_backfills SET next_sequence = %(next)s, looked_at = looked_at + %(looked_at)s, fired = fired + %(fired)s
WHERE trigger_id = %(trigger_id)s AND owner = %(owner)s AND state = 'running'
"""
_END: Final = """
UPDATE trigger_backfills SET finished_at = now(), owner = NULL,
  state = CASE WHEN %s <> 'done' THEN 'stopped' WHEN truncated THEN 'truncated' ELSE 'done' END
WHERE trigger_id = %s AND owner = %s AND state = 'running'
"""


@dataclass(slots=True)
class _Job:
    trigger_id: str
    project_id: str
    start_from: datetime
    next_sequence: int | None
    last_sequence: int | None
    owner: str = ""
    turn_ends_s: float = 0.0  # of the event loop's clock
    pattern: str = ""  # that `history` reads
    history: History | None = None


class Backfills:
    def __init__(
        self, pool: Pool, bus: EventBus, changes: Changes, triggers: Triggers, lease: Lease, starter: Starter
    ) -> None:
        self._pool = pool
        self._bus = bus
        self._changes = changes
        self._triggers = triggers
        self._lease = lease
        self._starter = starter
        self._jobs: dict[str, _Job] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        self._wake.set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._work_for_ever(), name="backfills")

    async def close(self) -> None:
        """What is begun is gone on with elsewhere, when the lease is over."""
        self._closing = True
        if self._task is not None:
            await end_task(self._task)

    async def _work_for_ever(self) -> None:
        away = False
        try:
            while not self._closing:
                self._wake.clear()
                try:
                    await self._claim()
                    for job in [*self._jobs.values()]:
                        await self._go_on(job)
                    await self._give_up(self._over())
                    away = False
                except (AtlasError, *stream.AWAY) as why:
                    if not away:
                        log.warning("dispatch.backfill", f"Events of the past wait: {why!r}")
                    away = True
                    await self._give_up([*self._jobs])
                except Exception:
                    log.exception("dispatch.fault", "Events of the past wait")
                    await self._give_up([*self._jobs])
                    await asyncio.sleep(LOOK_S)
                if not self._jobs or away:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await self._wake.wait()
        finally:
            await self._give_up([*self._jobs])

    async def _claim(self) -> None:
        """Take up what nobody works at, as far as there is room: one of each project first."""
        while len(self._jobs) < AT_ONCE:
            owner = self._lease.id
            async with transaction(self._pool) as conn:
                cursor = await conn.cursor(row_factory=class_row(_Job)).execute(_CLAIM.encode(), {"lease": owner})
                job = await cursor.fetchone()
            if job is None:
                return
            job.owner, job.turn_ends_s = owner, asyncio.get_running_loop().time() + TURN_S
            if (lost := self._jobs.pop(job.trigger_id, None)) is not None:  # with the lease before
                await self._shut(lost)
            self._jobs[job.trigger_id] = job

    async def _go_on(self, job: _Job) -> None:
        """One step, and as long a rest."""
        began_s = asyncio.get_running_loop().time()
        armed = (await self._triggers.of(job.project_id)).get(job.trigger_id)
        if job.last_sequence is None:
            await self._note_end(job)
        elif armed is None:
            await self._end(job, "stopped")
        else:
            await self._step(job, armed.trigger)
        await asyncio.sleep(asyncio.get_running_loop().time() - began_s)

    async def _note_end(self, job: _Job) -> None:
        """From here on every process knows the trigger; what comes after the end of the stream meets it."""
        await self._changes.fence()
        last = (await self._bus.jetstream.stream_info(stream.NAME)).state.last_seq
        async with transaction(self._pool) as conn:
            await conn.execute(
                "UPDATE trigger_backfills SET last_sequence = %s WHERE trigger_id = %s AND owner = %s",
                [last, job.trigger_id, job.owner],
            )
        job.last_sequence = last

    async def _step(self, job: _Job, trigger: Trigger) -> None:
        """Some events, or the end."""
        assert job.last_sequence is not None
        if job.history is None or job.pattern != pattern_of(trigger):
            await self._open(job, trigger)
        assert job.history is not None
        past = await job.history.some()
        mine = [each for each in past if each.sequence <= job.last_sequence]
        if mine and not await self._queue(job, trigger, mine):
            await self._forget(job)
        elif len(mine) < len(past) or not past or mine[-1].sequence == job.last_sequence:
            await self._end(job, "done")

    async def _open(self, job: _Job, trigger: Trigger) -> None:
        await self._shut(job)
        job.pattern = pattern_of(trigger)
        since = job.start_from if job.next_sequence is None else None
        history = History(self._bus, job.pattern, since=since, sequence=job.next_sequence)
        job.history = await history.__aenter__()

    async def _queue(self, job: _Job, trigger: Trigger, past: list[Past]) -> bool:
        """Whether this process still is the one to do so."""
        found = [each for message in past if (each := _fired(trigger, message)) is not None]
        following = past[-1].sequence + 1
        moved = {
            "next": following,
            "looked_at": len(past),
            "fired": len(found),
            "trigger_id": job.trigger_id,
            "owner": job.owner,
        }
        async with transaction(self._pool) as conn:
            if (await conn.execute(_MOVE.encode(), moved)).rowcount == 0:
                return False
            if found:
                bodies, pairs = zip(*found, strict=True)
                await ledger.insert(conn, job.owner, bodies, pairs)
        job.next_sequence = following
        if found:
            self._starter.wake()
        return True

    async def _end(self, job: _Job, state: str) -> None:
        async with transaction(self._pool) as conn:
            await conn.execute(_END.encode(), [state, job.trigger_id, job.owner])
        log.info(
            "dispatch.backfilled",
            f"A trigger's events of the past are {'queued' if state == 'done' else 'left out: it was disabled'}",
            project_id=job.project_id,
            trigger_id=job.trigger_id,
        )
        await self._forget(job)
        self._starter.wake()

    async def _forget(self, job: _Job) -> None:
        self._jobs.pop(job.trigger_id, None)
        await self._shut(job)

    async def _shut(self, job: _Job) -> None:
        history, job.history = job.history, None
        if history is not None:
            await history.__aexit__(None, None, None)

    def _over(self) -> list[str]:
        """Whose turn is over."""
        now_s = asyncio.get_running_loop().time()
        return [trigger_id for trigger_id, job in self._jobs.items() if job.turn_ends_s <= now_s]

    async def _give_up(self, trigger_ids: list[str]) -> None:
        """Nothing is lost: what was not written is read again. The rows stay this process's as long as its lease, when
        they cannot be handed back."""
        jobs = [self._jobs.pop(trigger_id) for trigger_id in trigger_ids]
        for job in jobs:
            await self._shut(job)
        if jobs:
            with suppress(AtlasError):
                async with transaction(self._pool) as conn:
                    await conn.execute(
                        "UPDATE trigger_backfills SET owner = NULL WHERE trigger_id = ANY(%s::uuid[])"
                        " AND owner = ANY(%s::uuid[])",
                        [trigger_ids, [job.owner for job in jobs]],
                    )


def _fired(trigger: Trigger, message: Past) -> tuple[Body, Pair] | None:
    if trigger.project_id.encode() not in message.body:
        return None
    try:
        event = stream.event_of(message.subject, message.body)
    except InvalidArgument:
        return None
    envelope = envelope_of(event)
    if not fires(trigger, envelope):
        return None
    seen, path = seen_by(trigger, envelope) or envelope, order_path(trigger)
    pair = Pair(
        delivery_id(trigger.id, event.id),
        trigger.project_id,
        trigger.id,
        event.id,
        seen["type"],
        message.sequence,
        None if path is None else order_key(path, seen),
        str(uuid4()),
        "held" if trigger.paused else "queued",
    )
    return body_of(event, message.body), pair


async def kept_from(pool: Pool) -> int | None:
    """The place in the stream from which on events are still to be read for triggers; None when there are none."""
    async with transaction(pool) as conn:
        cursor = await conn.execute(
            "SELECT min(coalesce(next_sequence, 0)) FROM trigger_backfills WHERE state = 'running'"
        )
        ((found,),) = await cursor.fetchall()
    return None if found is None else int(found)


async def note_removed(pool: Pool, first: int, stored_at: datetime) -> None:
    """The stream is going to begin at the place `first`, the last event before it was stored at `stored_at`: who has
    not come so far is truncated."""
    async with transaction(pool) as conn:
        await conn.execute(
            "UPDATE trigger_backfills SET truncated = true WHERE state = 'running' AND NOT truncated"
            " AND (next_sequence < %s OR next_sequence IS NULL AND start_from <= %s)",
            [first, stored_at],
        )
