"""Events of the past for triggers that were created with `start_from`: read in order, and queued like any other.

    waiting ──▶ the trigger is in force everywhere ──▶ note the end of the stream ──▶ some at a time up to it ──▶ done
                                                                                     └ disabled: stopped

Every event after the noted end meets the trigger as it comes; every one before it is met here; one that is met twice is
one delivery. What is queued and how far it is are written together, so that another process goes on where one ended.
What the stream has removed before it was read is told, though it may have been none of the trigger's.
It works half of the time at most: live events come first.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

from server.dispatch import backfill_rows, ledger
from server.dispatch.backfill_rows import Row
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


@dataclass(slots=True)
class _Job:
    row: Row
    turn_ends_s: float  # of the event loop's clock
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
            row = await backfill_rows.claim(self._pool, self._lease.id)
            if row is None:
                return
            if (lost := self._jobs.pop(row.trigger_id, None)) is not None:  # with the lease before
                await self._shut(lost)
            self._jobs[row.trigger_id] = _Job(row, asyncio.get_running_loop().time() + TURN_S)

    async def _go_on(self, job: _Job) -> None:
        """One step, and as long a rest."""
        began_s = asyncio.get_running_loop().time()
        armed = (await self._triggers.of(job.row.project_id)).get(job.row.trigger_id)
        if job.row.last_sequence is None:
            await self._note_end(job.row)
        elif armed is None:
            await self._end(job, "stopped")
        else:
            await self._step(job, armed.trigger)
        await asyncio.sleep(asyncio.get_running_loop().time() - began_s)

    async def _note_end(self, row: Row) -> None:
        """From here on every process knows the trigger; what comes after the end of the stream meets it."""
        await self._changes.fence()
        last = (await self._bus.jetstream.stream_info(stream.NAME)).state.last_seq
        await backfill_rows.note_end(self._pool, row, last)

    async def _step(self, job: _Job, trigger: Trigger) -> None:
        """Some events, or the end."""
        last = job.row.last_sequence
        assert last is not None
        if job.history is None or job.pattern != pattern_of(trigger):
            await self._open(job, trigger)
        assert job.history is not None
        past = await job.history.some()
        mine = [each for each in past if each.sequence <= last]
        await self._tell_removed(job.row, mine[0].sequence if mine else last + 1)
        if mine and not await self._queue(job, trigger, mine):
            await self._forget(job)
        elif len(mine) < len(past) or not past or mine[-1].sequence == last:
            await self._end(job, "done")

    async def _open(self, job: _Job, trigger: Trigger) -> None:
        await self._shut(job)
        row, job.pattern = job.row, pattern_of(trigger)
        since = row.start_from if row.next_sequence is None else None
        history = History(self._bus, job.pattern, since=since, sequence=row.next_sequence)
        job.history = await history.__aenter__()
        if row.next_sequence is None:
            info = await self._bus.jetstream.stream_info(stream.NAME)
            oldest = datetime.now(UTC) - timedelta(seconds=info.config.max_age or 0)
            aged = bool(info.config.max_age) and info.state.first_seq > 1 and row.start_from < oldest
            await backfill_rows.begin(self._pool, row, job.history.first, truncated=aged)

    async def _tell_removed(self, row: Row, following: int) -> None:
        """`following` is what comes next. What the stream removed before that is lost to it."""
        assert row.next_sequence is not None
        if following > row.next_sequence:  # something was between, if only of other types
            state = (await self._bus.jetstream.stream_info(stream.NAME)).state
            if state.first_seq > row.next_sequence:
                await backfill_rows.truncate(self._pool, row)

    async def _queue(self, job: _Job, trigger: Trigger, past: list[Past]) -> bool:
        """Whether this process still is the one to do so."""
        found = [each for message in past if (each := _fired(trigger, message)) is not None]
        following = past[-1].sequence + 1
        async with transaction(self._pool) as conn:
            if not await backfill_rows.move(conn, job.row, following, looked_at=len(past), fired=len(found)):
                return False
            if found:
                bodies, pairs = zip(*found, strict=True)
                await ledger.insert(conn, job.row.owner, bodies, pairs)
        job.row.next_sequence = following
        if found:
            self._starter.wake()
        return True

    async def _end(self, job: _Job, state: str) -> None:
        await backfill_rows.end(self._pool, job.row, state)
        log.info(
            "dispatch.backfilled",
            f"A trigger's events of the past are {'queued' if state == 'done' else 'left out: it was disabled'}",
            project_id=job.row.project_id,
            trigger_id=job.row.trigger_id,
        )
        await self._forget(job)
        self._starter.wake()

    async def _forget(self, job: _Job) -> None:
        self._jobs.pop(job.row.trigger_id, None)
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
                await backfill_rows.hand_back(self._pool, [job.row for job in jobs])


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
