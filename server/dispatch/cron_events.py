"""What a tick is in the stream and in the ledger. Pure.

One that fires is an event of the type `cron` that its trigger alone answers:

    {"type": "cron", "source": "cron", "trigger_id": …, "time": the minute, "data": {"schedule", "timezone",
     "scheduled_at": the minute in UTC, "local_time": the same in the zone of the schedule}}

Ticks that do not fire, those of one trigger and one look together, are a delivery that is skipped from the start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Literal
from zoneinfo import ZoneInfo

import orjson

from server.dispatch.identity import delivery_id
from server.events.envelope import Event, encode, spelled
from server.events.json_text import Json
from server.triggers.definition import Trigger
from server.triggers.schedule import Schedule
from server.triggers.ticks import Missed, message_id

TYPE: Final = "cron"

Why = Literal["missed", "overlapped"]
"""The outcome of a skipped delivery, and the verdict that metrics show."""

_TOLD: Final[dict[Why, tuple[str, str]]] = {
    "missed": ("TICK_MISSED", "came to nothing because nobody looked at the schedule in time"),
    "overlapped": ("TICK_OVERLAPPED", "came to nothing because earlier ones are not finished"),
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A tick that later ones of its trigger wait for, until its delivery has ended."""

    trigger_id: str
    minute: datetime
    delivery_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row of the ledger. `body` is the event of the first of its ticks, as it would have been in the stream."""

    id: str
    project_id: str
    trigger_id: str
    event_id: str
    body: str
    outcome: Why
    error: Mapping[str, str]


def event_of(trigger: Trigger, schedule: Schedule, minute: datetime) -> Event:
    data = {"schedule": schedule.text, "timezone": schedule.zone.key, **_times(minute, schedule.zone)}
    return Event(
        id=message_id(trigger.id, minute),
        type=TYPE,
        project_id=trigger.project_id,
        time=minute,
        source=TYPE,
        data=Json(orjson.dumps(data).decode(), data),
        trigger_id=trigger.id,
    )


@lru_cache(maxsize=1_000)
def _times(minute: datetime, zone: ZoneInfo) -> Mapping[str, str]:
    return {"scheduled_at": spelled(minute), "local_time": minute.astimezone(zone).isoformat()}


def overlapped(trigger: Trigger, schedule: Schedule, minutes: list[datetime]) -> Skipped:
    """Of ticks that had to give way to earlier ones; in order, not empty."""
    return _skipped(trigger, schedule, "overlapped", minutes[0], _span(minutes[0], minutes[-1], len(minutes)))


def missed(trigger: Trigger, schedule: Schedule, found: Missed) -> Skipped:
    """Of ticks that nobody looked at in time."""
    if found.last is None:
        counted = f"Ticks since {spelled(found.first)}, none of them in the last day before they were looked at,"
    elif found.last - found.first >= timedelta(days=1):
        counted = f"Ticks from {spelled(found.first)} to {spelled(found.last)}, {found.count} of them in the last day,"
    else:
        counted = _span(found.first, found.last, found.count)
    return _skipped(trigger, schedule, "missed", found.first, counted)


def _span(first: datetime, last: datetime, count: int) -> str:
    if first == last:
        return f"The tick of {spelled(first)}"
    return f"{count} ticks from {spelled(first)} to {spelled(last)}"


def _skipped(trigger: Trigger, schedule: Schedule, why: Why, first: datetime, counted: str) -> Skipped:
    reason, told = _TOLD[why]
    event = event_of(trigger, schedule, first)
    return Skipped(
        id=delivery_id(trigger.id, event.id),
        project_id=trigger.project_id,
        trigger_id=trigger.id,
        event_id=event.id,
        body=encode(event).decode(),
        outcome=why,
        error={"reason": reason, "message": f"{counted} {told}"},
    )


def minute_of(event_id: str) -> datetime | None:
    """Of the tick whose event has that id; None when it is no tick's."""
    try:
        return datetime.strptime(event_id[-len("2026-01-31T09:00Z") :], "%Y-%m-%dT%H:%M%z")
    except ValueError:
        return None
