"""What one look at the clock makes of the cron triggers. Pure: it is told the time and the past, and says what to do.

A tick is a pair (trigger, minute). Each minute a scheduler looks at the minutes after the one it evaluated last:

    the clock                                    minutes looked at            evaluated becomes
    first start, nothing evaluated yet           the present one              the present minute
    goes on, or jumps forward, or slept          all since the last one       the present minute
    back by MAX_BACK_S or less, or same minute   none: they had their turn    stays, until the clock has caught up
    back by more: it had been wrong before       the present one              the present minute

    the tick                                     verdict
    not later than the trigger's `since`         not a tick of this trigger
    already among `fired` or `unfinished`        nothing: it has its delivery
    as old as GRACE_S and as catch_up_s          missed, counted in one Missed a trigger
    in time, overlap allow                       FIRE
    in time, overlap skip                        the newest: FIRE, unless an earlier tick is unfinished, then OVERLAP
                                                 older ones that are due with it: OVERLAP
    in time, overlap queue                       FIRE, while fewer than MAX_QUEUED are unfinished, then OVERLAP

Minutes are UTC, so that putting a clock of the wall forward or back is no jump. One tick has one message id: whoever
fires it again, after a crash or on a second worker, fires nothing twice.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from server.triggers.crontab import Crontab
from server.triggers.schedule import MAX_CATCH_UP_S, Overlap, Schedule, due, floor_minute, next_runs

GRACE_S: Final = 90  # one look left out whole, by a restart or a pause, is made good whatever catch_up_s is
MAX_BACK_S: Final = 600  # what time servers and workers whose clocks differ may ask for; more repairs a wrong clock
MAX_QUEUED: Final = 100  # unfinished deliveries of one trigger: a target that never catches up must not fill the ledger

_MINUTE: Final = timedelta(minutes=1)


class Verdict(StrEnum):
    FIRE = "fire"
    OVERLAP = "overlap"


@dataclass(frozen=True, slots=True, kw_only=True)
class CronTrigger:
    """An enabled trigger. `since`: when it was created or enabled, or its schedule or zone written, whichever is last.

    `unfinished` are the minutes of its ticks whose delivery waits or runs; `fired` those of its ticks in the window
    that have a delivery in any state, which is so after a crash between publishing and storing `Look.evaluated`.
    """

    id: str
    schedule: Schedule
    since: datetime
    unfinished: Collection[datetime] = ()
    fired: Collection[datetime] = ()

    def has_delivery(self, minute: datetime) -> bool:
        return minute in self.unfinished or minute in self.fired


@dataclass(frozen=True, slots=True)
class Tick:
    trigger_id: str
    minute: datetime
    verdict: Verdict

    @property
    def message_id(self) -> str:
        return message_id(self.trigger_id, self.minute)


@dataclass(frozen=True, slots=True)
class Missed:
    """Ticks that nobody looked at in time: `count` of them from `first` to `last`.

    Where nobody looked for more than a day, `count` and `last` are those of the last day alone; `last` is None when
    that day had none.
    """

    trigger_id: str
    first: datetime
    last: datetime | None
    count: int


@dataclass(frozen=True, slots=True)
class Look:
    """The minutes (`after`, `evaluated`] are to be looked at; `evaluated` is to be stored when all is published."""

    after: datetime
    evaluated: datetime


def look(evaluated: datetime | None, now: datetime) -> Look:
    """The window of a look at `now`, from the minute that was evaluated last, None if none ever was."""
    present = floor_minute(now)
    if evaluated is None or evaluated - present > timedelta(seconds=MAX_BACK_S):
        return Look(present - _MINUTE, present)
    return Look(evaluated, max(evaluated, present))


def decide(trigger: CronTrigger, window: Look, now: datetime) -> tuple[list[Tick], Missed | None]:
    """The ticks of one trigger in `window`, in order, and those that came too late to fire.

    No more than the ticks of MAX_CATCH_UP_S are listed and of MAX_CATCH_UP_S counted, whatever the window and `now`.
    """
    after = max(window.after, trigger.since)
    in_time = timedelta(seconds=max(GRACE_S, trigger.schedule.catch_up_s))
    late = min(max(max(now, window.evaluated) - in_time, after), window.evaluated)
    found = _due(trigger.schedule, late, window.evaluated)
    fresh = [minute for minute in found if not trigger.has_delivery(minute)]
    return _without_overlap(trigger, fresh), _missed(trigger, after, late)


def decide_all(triggers: Iterable[CronTrigger], window: Look, now: datetime) -> tuple[list[Tick], list[Missed]]:
    """`decide` for each; give it a part of the triggers at a time where others wait for the thread."""
    ticks: list[Tick] = []
    missed: list[Missed] = []
    for trigger in triggers:
        decided, lost = decide(trigger, window, now)
        ticks += decided
        if lost:
            missed.append(lost)
    return ticks, missed


def message_id(trigger_id: str, minute: datetime) -> str:
    """The id of the event of a tick: the same on every worker, and at every attempt."""
    return f"cron:{trigger_id}:{minute.isoformat()[:16]}Z"


def _due(schedule: Schedule, after: datetime, until: datetime) -> Sequence[datetime]:
    """As `due`. Of thousands of schedules that are looked at each minute most are the same few."""
    if until - after > _MINUTE:
        return due(schedule, after, until)
    return _due_in_a_minute(schedule.crontab, schedule.zone, after, until)


@lru_cache(maxsize=4_096)
def _due_in_a_minute(crontab: Crontab, zone: ZoneInfo, after: datetime, until: datetime) -> tuple[datetime, ...]:
    return tuple(due(Schedule(text="", crontab=crontab, zone=zone), after, until))


def _without_overlap(trigger: CronTrigger, fresh: list[datetime]) -> list[Tick]:
    match trigger.schedule.overlap:
        case Overlap.ALLOW:
            firing = fresh
        case Overlap.SKIP:
            firing = [] if trigger.unfinished else fresh[-1:]
        case Overlap.QUEUE:
            firing = fresh[: max(0, MAX_QUEUED - len(trigger.unfinished))]
    fires = frozenset(firing)
    return [Tick(trigger.id, minute, Verdict.FIRE if minute in fires else Verdict.OVERLAP) for minute in fresh]


def _missed(trigger: CronTrigger, after: datetime, until: datetime) -> Missed | None:
    if until <= after:
        return None
    start = max(after, until - timedelta(seconds=MAX_CATCH_UP_S))
    searched = [minute for minute in due(trigger.schedule, start, until) if not trigger.has_delivery(minute)]
    earlier = next_runs(trigger.schedule, after, 1, until=start)
    if not (earlier or searched):
        return None
    return Missed(trigger.id, (earlier + searched)[0], searched[-1] if searched else None, len(searched))
