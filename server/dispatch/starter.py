"""Starts what is queued, when it is due and there is room: fairly by trigger, within its concurrency, in order.

woken, or once a second ──▶ a page of triggers that wait ──▶ room for each ──▶ take up ──▶ Runs
                              │ gone: cancelled  paused: held
                              └ with order keys or a concurrency limit: under a lock of the trigger's row, so that
                                what is counted and seen holds over all workers
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from server.dispatch import ledger, queued
from server.dispatch.consumer import Progress
from server.dispatch.lease import Lease
from server.dispatch.queued import FIRST, PAGE, Taken, Waiting
from server.dispatch.room import Room
from server.dispatch.runs import Attempt, Runs
from server.errors import AtlasError
from server.events.stream import AWAY
from server.log import logger
from server.postgres.control import Connection, Kept, Pool, transaction
from server.tasks import end_task
from server.tiers import Tier
from server.triggers.cache import Armed, ProjectTriggers
from server.triggers.definition import Trigger

log = logger("dispatch")

POLL_S: Final = 1.0
PER_SLOT: Final = 4
"""Triggers on a page for each slot that is free."""

LOOKS: Final = 4
"""Pages of heads that are looked at for one trigger before others have their turn."""

TOGETHER: Final = 8
"""Triggers with order keys that are locked at the same time: nobody changes them meanwhile."""

SOON_S: Final = 0.02
"""Until the stream is asked again whether it is done up to a delivery that is due in its order, and until a look goes
on that was cut short."""


class Triggers(Protocol):
    """`server.triggers.cache.TriggerCache`."""

    async def of(self, project_id: str) -> ProjectTriggers: ...


class Stream(Protocol):
    """How far the stream is done: `server.dispatch.consumer.progress`."""

    async def __call__(self) -> Progress: ...


@dataclass(frozen=True, slots=True)
class _Known:
    """A trigger in force, the tier of its project, and how many of its deliveries are due, as far as it matters."""

    armed: Armed
    tier: Tier | None
    due: int


@dataclass(slots=True)
class _Pass:
    """Once around the keys of a trigger, from `begin`; it has come to `after`."""

    began: int  # the round
    begin: str = ""
    after: str = ""
    turned: bool = False


class Starter:
    def __init__(self, pool: Pool, triggers: Triggers, progress: Stream, lease: Lease, room: Room, runs: Runs) -> None:
        self._pool = pool
        self._kept = Kept(pool)
        self._triggers = triggers
        self._progress = progress
        self._lease = lease
        self._room = room
        self._runs = runs
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._hungry = False
        self._stream = Progress()
        self._seen = 0  # the latest head that the stream was not known to be done up to
        self._beyond = 0  # that, when the stream was asked last
        self._passes: dict[str, _Pass] = {}  # by trigger: what the next look goes on with
        self._cursors: dict[bool, str] = {}
        self._spilled: dict[str, int] = {}  # by trigger: the round that began last when it was
        self._round = 0
        self._woken = 0  # the latest round that somebody asked for
        self._soon_s = POLL_S

    def wake(self) -> None:
        self._wake.set()

    def ended(self, delay_s: float) -> None:
        """Some attempts are written; the earliest that is to run again is due after `delay_s`."""
        if self._hungry or delay_s <= 0:
            self._wake.set()
        elif delay_s < POLL_S:
            asyncio.get_running_loop().call_later(delay_s, self._wake.set)

    def spill(self, trigger_id: str) -> None:
        """More of it is queued: until that has run, what comes new waits behind it."""
        self._spilled[trigger_id] = self._round

    def waits(self, trigger_id: str) -> bool:
        """Whether deliveries of it are queued that could run now, as far as this process knows."""
        return trigger_id in self._spilled

    async def start(self) -> None:
        self._task = asyncio.create_task(self._work_for_ever(), name="queued deliveries")

    async def close(self) -> None:
        if self._task is not None:
            await end_task(self._task)
            await self._kept.close()

    async def _work_for_ever(self) -> None:
        away = False
        while True:
            if self._wake.is_set():
                self._woken = self._round + 1
            self._wake.clear()
            self._soon_s = POLL_S
            try:
                await self._start_all()
                away = False
            except AtlasError as why:
                if not away:
                    log.warning("dispatch.queued", f"Queued deliveries wait: {why}")
                away = True
            except Exception:
                log.exception("dispatch.fault", "Queued deliveries wait")
                await asyncio.sleep(POLL_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._soon_s):
                    await self._wake.wait()

    async def _start_all(self) -> None:
        """All that is due and has room, of either kind first in turn."""
        self._round += 1
        began, seen = self._round, set[str]()
        self._hungry = False
        for ordered in (False, True) if self._round % 2 else (True, False):
            if not await self._go_round(ordered, seen):
                self._hungry = True
                return
        self._spilled = {each: at for each, at in self._spilled.items() if each in seen or at >= began}
        self._passes = {each: one for each, one in self._passes.items() if each in seen}

    async def _go_round(self, ordered: bool, seen: set[str]) -> bool:
        """Page by page, from where the last round ended, once around; False when there is no more room."""
        begin = after = self._cursors.get(ordered, FIRST)
        turned = begin == FIRST
        while self._room.free > 0:
            size = min(PAGE, PER_SLOT * self._room.free)
            page = await self._page(after, ordered, size)
            last = len(page) < size
            if turned and begin != FIRST:
                last = last or page[-1].trigger_id >= begin
                page = [each for each in page if each.trigger_id <= begin]
            seen.update(each.trigger_id for each in page if each.due)
            await self._start(page, ordered)
            if last and turned:
                self._cursors[ordered] = FIRST
                return True
            turned, after = (True, FIRST) if last else (turned, page[-1].trigger_id)
        self._cursors[ordered] = after
        return False

    async def _page(self, after: str, ordered: bool, size: int) -> list[Waiting]:
        async with self._kept.connection() as conn:
            if ordered:
                return await queued.waiting_in_order(conn, after, size)
            return await queued.waiting(conn, after, size, self._room.free)

    async def _start(self, page: Iterable[Waiting], ordered: bool) -> None:
        """What is due of one page, as far as there is room."""
        known = await self._known_of([each for each in page if each.due], ordered)
        shares = self._room.shares({each: found.due for each, found in known.items()})
        if any(shares.get(each, 0) < found.due for each, found in known.items()):
            self._hungry = True
        limited = {each for each in shares if ordered or known[each].armed.trigger.concurrency is not None}
        free = {each: given for each, given in shares.items() if each not in limited}
        if free:
            async with self._kept.connection() as conn:
                taken = await queued.take(conn, self._lease.id, free)
            self._run(taken, known)
        if limited:
            await self._start_limited({each: shares[each] for each in limited}, known, ordered)

    async def _known_of(self, page: Iterable[Waiting], ordered: bool) -> dict[str, _Known]:
        """The triggers that are in force, by id. What others have queued is dropped or held."""
        found: dict[str, _Known] = {}
        for each in page:
            project = await self._triggers.of(each.project_id)
            armed = project.get(each.trigger_id)
            if armed is not None and not armed.trigger.paused:
                due = self._room.free if ordered else each.due
                found[each.trigger_id] = _Known(armed, project.tier, due)
                continue
            async with transaction(self._pool) as conn:
                dropped = await ledger.drop(
                    conn, each.trigger_id, "cancelled" if armed is None else "held", ordered=ordered
                )
            if dropped == ledger.BATCH:
                self._soon_s = 0.0
        return found

    async def _start_limited(self, shares: Mapping[str, int], known: Mapping[str, _Known], ordered: bool) -> None:
        """Of triggers whose limits hold over all workers."""
        if ordered:
            await self._ask_stream()
        ids, size = [*shares], TOGETHER if ordered else len(shares)
        for at in range(0, len(ids), size):
            await self._start_some({each: shares[each] for each in ids[at : at + size]}, known, ordered)

    async def _start_some(self, shares: Mapping[str, int], known: Mapping[str, _Known], ordered: bool) -> None:
        """Those in one transaction. Where any of them runs, its end may let another start."""
        hungry, self._hungry = self._hungry, True
        async with transaction(self._pool) as conn:
            running = await queued.lock(conn, shares)
            if len(running) < len(shares):
                self._soon_s = min(self._soon_s, SOON_S)  # another worker is at it
            most = {each: _within(known[each].armed.trigger, shares[each], count) for each, count in running.items()}
            most = {each: given for each, given in most.items() if given > 0}
            if ordered:
                ids = [each for trigger_id in most for each in await self._ready(conn, trigger_id, most[trigger_id])]
                taken = await queued.take_named(conn, self._lease.id, ids) if ids else []
            else:
                taken = await queued.take(conn, self._lease.id, most) if most else []
        self._run(taken, known)
        self._hungry = hungry or bool(taken) or any(running.values())

    async def _ready(self, conn: Connection, trigger_id: str, most: int) -> list[str]:
        """Heads that may start, at most so many, of LOOKS pages: from where the last look ended, once around."""
        ready: list[str] = []
        one = self._passes.pop(trigger_id, None) or _Pass(self._round)
        for _ in range(LOOKS):
            found = await queued.heads(conn, trigger_id, one.after)
            for head in found:
                if one.turned and head.order_key > one.begin:
                    return self._been_around(one, ready)
                if head.ready and self._is_done(head.sequence):
                    ready.append(head.id)
                    if len(ready) == most:
                        self._passes[trigger_id] = _Pass(self._round, head.order_key, head.order_key)
                        return ready
                one.after = head.order_key
            if len(found) < queued.KEYS:
                if one.turned or not one.begin:
                    return self._been_around(one, ready)
                one.turned, one.after = True, ""
        self._passes[trigger_id] = one
        self._soon_s = min(self._soon_s, SOON_S)
        return ready

    def _been_around(self, one: _Pass, ready: list[str]) -> list[str]:
        if self._woken > one.began:  # for a key that was passed before, maybe
            self._soon_s = min(self._soon_s, SOON_S)
        return ready

    def _is_done(self, sequence: int) -> bool:
        """Whether nothing earlier can come any more. What lay beyond the end of the stream when it was looked at is of
        one that was lost."""
        if sequence <= self._stream.done or self._stream.last < sequence <= self._beyond:
            return True
        self._seen = max(self._seen, sequence)
        self._soon_s = min(self._soon_s, SOON_S)
        return False

    async def _ask_stream(self) -> None:
        with suppress(*AWAY):
            self._stream = await self._progress()
            self._beyond = self._seen

    def _run(self, taken: Collection[Taken], known: Mapping[str, _Known]) -> None:
        """They are this process's now."""
        for each in taken:
            self._room.take(each.trigger_id, however=True)
            self._runs.start(
                Attempt(
                    delivery_id=each.id,
                    run_id=each.run_id,
                    armed=known[each.trigger_id].armed,
                    tier=known[each.trigger_id].tier,
                    body=each.body,
                    attempts=each.attempts,
                    refusals=each.refusals,
                    since=each.since,
                    came_at=each.created_at,
                )
            )


def _within(trigger: Trigger, share: int, running: int) -> int:
    return share if trigger.concurrency is None else min(share, trigger.concurrency - running)
