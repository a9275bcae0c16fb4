"""The scheduler of cron triggers, in every worker: each minute becomes the ticks that are due in it.

    a new minute on the clock ──▶ lock the state ──▶ decide ──▶ publish, all acknowledged ──▶ marks, skipped ones and
                                  └─▶ another worker has it                                   the minute, one COMMIT

Whatever fails, nothing is marked and the look is tried again, its window then longer by the minutes that went by;
`server.triggers.ticks` says what becomes of them. A tick that is published again has the same event id, so that
neither the stream nor the ledger takes it twice. Ticks of paused triggers are published like others: to hold them is
the dispatcher's part, and a held one is unfinished, so that of a trigger with overlap skip at most one is held.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from server.clock import Clock, SystemClock
from server.dispatch import cron_marks
from server.dispatch.cron_plan import Plan
from server.errors import AtlasError, InvalidArgument
from server.events.envelope import Event
from server.log import logger
from server.postgres.control import Pool, transaction
from server.tasks import end_task
from server.telemetry.metrics import Metrics
from server.triggers import ticks
from server.triggers.definition import Trigger
from server.triggers.schedule import Schedule, floor_minute, parse_schedule
from server.triggers.ticks import CronTrigger, Look

log = logger("cron")

NAP_S: Final = 5.0
"""The longest sleep: by so much a look is late after the clock was put forward, or the machine slept."""

RETRY_S: Final = 1.0
"""Between attempts at a look, while something is away or another worker is at it."""

SLICE_S: Final = 0.005
"""Of thinking, after which others of this thread have their turn."""

PART: Final = 250
"""Triggers decided on, and events published, at a time: others wait 15 ms for the thread, of 1,000 they wait 60."""

PART_TICKS: Final = 20_000
"""That a part may come to, when many minutes are looked at."""

KEEP_HOURS: Final = 72.0
"""For which it is known what ran, unless told otherwise."""

_MINUTE: Final = timedelta(minutes=1)


class Schedules(Protocol):
    """`server.triggers.cache.TriggerCache`."""

    async def scheduled(self) -> Sequence[Trigger]:
        """The enabled cron triggers of all projects, paused ones too."""
        ...


class Publishes(Protocol):
    """`server.events.publisher.Publisher`."""

    async def publish(self, events: Sequence[Event]) -> object: ...


Scheduled = tuple[Trigger, Schedule]


class Cron:
    def __init__(
        self,
        pool: Pool,
        triggers: Schedules,
        publisher: Publishes,
        metrics: Metrics,
        *,
        events_keep_hours: float = KEEP_HOURS,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._pool = pool
        self._triggers = triggers
        self._publisher = publisher
        self._metrics = metrics
        self._most_s = int(events_keep_hours * 3600)
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._parsed: dict[str, tuple[Mapping[str, Any], Schedule | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._look_for_ever(), name="cron")

    async def close(self) -> None:
        """Look no more. A look that is given up half-way is made by the next worker, or at the next start."""
        if self._task is not None:
            await end_task(self._task)

    async def sweep(self) -> None:
        """Forget published ticks that have ended."""
        async with transaction(self._pool) as conn:
            await cron_marks.forget(conn)

    async def look(self) -> bool:
        """Do what is due up to the present minute; False when another worker is just doing it.

        Unavailable while Postgres or NATS is away: then nothing is marked, and some ticks may be published.
        """
        plan = Plan()
        async with transaction(self._pool) as conn:
            held = await cron_marks.hold(conn)
            if held is None:
                return False
            now = self._clock.now()
            window = ticks.look(held.evaluated, now)
            if window.evaluated == held.evaluated:
                return True
            minutes = max(1, (window.evaluated - window.after) // _MINUTE)
            unfinished = await cron_marks.unfinished(conn)
            async for part in self._parts(max(1, min(PART, PART_TICKS // minutes))):
                fired: cron_marks.Minutes = {}
                if minutes > 1:  # a look before this one may have published and not marked
                    fired = await cron_marks.delivered(conn, [trigger.id for trigger, _ in part], window.after)
                await self._decide(plan, part, unfinished, fired, window, now)
                await self._publish(plan.take_events())
            await cron_marks.mark(conn, plan.marks)
            await cron_marks.skip(conn, plan.skipped)
            await cron_marks.store(conn, window.evaluated)
        self._count(plan)
        return True

    async def _look_for_ever(self) -> None:
        looked: datetime | None = None
        while True:
            minute = floor_minute(self._clock.now())
            if minute != looked and await self._try():
                looked = minute
            await self._sleep(nap_s(self._clock.now()) if minute == looked else RETRY_S)

    async def _try(self) -> bool:
        try:
            return await self.look()
        except AtlasError as why:
            log.warning("cron.late", f"Schedules cannot be looked at now: {why}")
        except Exception:
            log.exception("cron.fault", "Schedules cannot be looked at")
        return False

    async def _parts(self, size: int) -> AsyncIterator[list[Scheduled]]:
        """All triggers that have a schedule; a stored one that is none is left out, and said once."""
        parsed: dict[str, tuple[Mapping[str, Any], Schedule | None]] = {}
        part: list[Scheduled] = []
        turn = _Turn(self._clock)
        for trigger in await self._triggers.scheduled():
            config, schedule = self._parsed.get(trigger.id, (None, None))
            if config != trigger.config:
                schedule = _parse(trigger, self._most_s)
            parsed[trigger.id] = trigger.config, schedule
            if schedule is not None:
                part.append((trigger, schedule))
            await turn.give()
            if len(part) == size:
                yield part
                part = []
        if part:
            yield part
        self._parsed = parsed

    async def _decide(
        self,
        plan: Plan,
        part: Sequence[Scheduled],
        unfinished: cron_marks.Minutes,
        fired: cron_marks.Minutes,
        window: Look,
        now: datetime,
    ) -> None:
        turn = _Turn(self._clock)
        for trigger, schedule in part:
            told = CronTrigger(
                id=trigger.id,
                schedule=schedule,
                since=trigger.since,
                unfinished=unfinished.get(trigger.id, ()),
                fired=fired.get(trigger.id, ()),
            )
            plan.add(trigger, schedule, told, window, now)
            await turn.give()

    async def _publish(self, events: Sequence[Event]) -> None:
        lateness = self._metrics.cron_lateness_s()
        for first in range(0, len(events), PART):
            batch = events[first : first + PART]
            await self._publisher.publish(batch)
            now = self._clock.now()
            for event in batch:
                lateness.observe(max(0.0, (now - event.time).total_seconds()))

    def _count(self, plan: Plan) -> None:
        for verdict, count in {"fired": plan.fired, "missed": plan.missed, "overlapped": plan.overlapped}.items():
            self._metrics.cron_ticks(verdict).add(count)
        if plan.missed:
            log.warning("cron.missed", f"{plan.missed} ticks were missed; each trigger has them in its deliveries")


class _Turn:
    """Lets others run whenever SLICE_S have gone by."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s = clock.monotonic_s()

    async def give(self) -> None:
        if self._clock.monotonic_s() - self._since_s > SLICE_S:
            await asyncio.sleep(0)
            self._since_s = self._clock.monotonic_s()


def nap_s(now: datetime) -> float:
    """How long to sleep before looking at the clock again: until the next minute, and NAP_S at most."""
    return min(NAP_S, (floor_minute(now) + _MINUTE - now).total_seconds())


def _parse(trigger: Trigger, most_s: int) -> Schedule | None:
    """Made good for `most_s` at most: for longer it is not known which ticks have run."""
    try:
        schedule = parse_schedule(trigger.config)
        return replace(schedule, catch_up_s=min(schedule.catch_up_s, most_s))
    except InvalidArgument as why:
        log.error("cron.unreadable", f"The trigger {trigger.id} never fires: {why}", trigger_id=trigger.id)
        return None
