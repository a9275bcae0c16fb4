"""When a cron trigger fires: five fields in a time zone. Pure; every time is aware, every firing a whole UTC minute.

The clocks of a zone are put forward and back. Two kinds of schedules are meant differently, as in the cron of Debian:

    names hours        "30 2 * * *" means: when the clock shows 02:30, once a day. It fires at the first moment at
                       which the clock shows that time or a later one: a time that is skipped fires with the first
                       minute after the gap (several skipped ones together, once), a time that comes twice fires once.
    names every hour   "*/15 * * * *" means: as time goes by. It fires in each real minute whose clock reading it names,
                       in a repeated hour both times; nothing is made up for a gap, in which no time went by.

Kubernetes and Quartz leave out what falls into a gap, and a night's backup with it; croniter fires twice what comes
twice, and a night's invoice with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Final
from zoneinfo import ZoneInfo

from server.errors import InvalidArgument
from server.fields import parse_choice, shown
from server.triggers.crontab import Crontab, parse_crontab

SCHEDULE_KEYS: Final = ("schedule", "timezone", "catch_up_s", "overlap")
MAX_CATCH_UP_S: Final = 86_400  # a day: what is older is a report's business, and 1,440 firings at once are enough
MAX_WINDOW_S: Final = 2 * MAX_CATCH_UP_S  # that due() looks through in one call
MAX_PREVIEW: Final = 100
PREVIEW_DAYS: Final = 20 * 366  # a 29 February may be eight years away

_MINUTE: Final = timedelta(minutes=1)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


class Overlap(StrEnum):
    """What a firing does while an earlier one is not finished."""

    ALLOW = "allow"
    SKIP = "skip"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`text` as its author wrote it. A missed firing is made up for within `catch_up_s`, 0 to MAX_CATCH_UP_S."""

    text: str
    crontab: Crontab
    zone: ZoneInfo
    catch_up_s: int = 0
    overlap: Overlap = Overlap.ALLOW


def parse_schedule(config: Mapping[str, object], field: str = "config") -> Schedule:
    """The SCHEDULE_KEYS of a cron trigger's `config`, decoded JSON; other keys are not looked at.

    `schedule` is required; `timezone` is "UTC", `catch_up_s` 0 and `overlap` "allow" when they are absent. Raises
    InvalidArgument, whose field is `field` and the key.
    """
    text = _text(config, field, "schedule", None)
    return Schedule(
        text=text,
        crontab=parse_crontab(f"{field}.schedule", text),
        zone=_parse_zone(f"{field}.timezone", _text(config, field, "timezone", "UTC")),
        catch_up_s=_parse_catch_up(f"{field}.catch_up_s", config.get("catch_up_s", 0)),
        overlap=Overlap(parse_choice(f"{field}.overlap", _text(config, field, "overlap", "allow"), tuple(Overlap))),
    )


def next_runs(schedule: Schedule, after: datetime, count: int, until: datetime | None = None) -> list[datetime]:
    """The next firings later than `after`, in UTC: `count` (1 to MAX_PREVIEW) of them, or all up to `until`.

    Without `until`, or with a later one, the search ends after PREVIEW_DAYS.
    """
    if not 1 <= count <= MAX_PREVIEW:
        raise ValueError(f"count is {count}; it must be from 1 to {MAX_PREVIEW}")
    horizon = after + PREVIEW_DAYS * _DAY
    return list(islice(_firings(schedule, after, min(until or horizon, horizon)), count))


def due(schedule: Schedule, from_exclusive: datetime, to_inclusive: datetime) -> list[datetime]:
    """The firings of this window of at most MAX_WINDOW_S, in UTC and in order; none when it ends before it begins."""
    if (to_inclusive - from_exclusive).total_seconds() > MAX_WINDOW_S:
        raise ValueError(f"the window {from_exclusive} to {to_inclusive} is longer than {MAX_WINDOW_S} s")
    return list(_firings(schedule, from_exclusive, to_inclusive))


def floor_minute(at: datetime) -> datetime:
    """The UTC minute that `at` is in."""
    return at.astimezone(UTC).replace(second=0, microsecond=0)


# The rule


def _fires(schedule: Schedule, at: datetime) -> bool:
    crontab, local = schedule.crontab, at.astimezone(schedule.zone)
    if crontab.every_hour:
        return crontab.includes(local)
    if not local.fold and crontab.includes(local):
        return True
    skipped, shown_now = _wall(at - _MINUTE, schedule.zone) + _MINUTE, local.replace(tzinfo=None)
    while skipped < shown_now:
        if crontab.includes(skipped):
            return True
        skipped += _MINUTE
    return False


def _wall(at: datetime, zone: ZoneInfo) -> datetime:
    return at.astimezone(zone).replace(tzinfo=None)


# The search: days, then hours, that cannot fire are passed over whole


def _firings(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    at, stop = floor_minute(after) + _MINUTE, floor_minute(until) + _MINUTE
    while at < stop:
        if not _day_may_fire(schedule, at):
            at = at.replace(hour=0, minute=0) + _DAY
            continue
        end = min(at.replace(minute=0) + _HOUR, stop)
        yield from (minute for minute in _candidates(schedule, at, end) if _fires(schedule, minute))
        at = end


def _day_may_fire(schedule: Schedule, at: datetime) -> bool:
    """No zone is a day or more from UTC: what a clock shows or skips on this UTC day has a date next to its own."""
    includes_day, day = schedule.crontab.includes_day, at.date()
    return includes_day(day) or includes_day(day - _DAY) or includes_day(day + _DAY)


def _candidates(schedule: Schedule, at: datetime, end: datetime) -> list[datetime]:
    """The minutes from `at` until `end`, an hour at most, without those that a clock at rest rules out."""
    crontab, zone, size = schedule.crontab, schedule.zone, (end - at) // _MINUTE
    before, last = (at - _MINUTE).astimezone(zone), (end - _MINUTE).astimezone(zone)
    if before.utcoffset() != last.utcoffset():
        return [at + n * _MINUTE for n in range(size)]
    first = at.astimezone(zone)
    if not (crontab.hours >> first.hour | crontab.hours >> last.hour) & 1:
        return []
    return [at + n * _MINUTE for n in range(size) if crontab.minutes >> (first.minute + n) % 60 & 1]


# The other keys


def _text(config: Mapping[str, object], field: str, key: str, default: str | None) -> str:
    value = config.get(key, default)
    if isinstance(value, str):
        return value
    told = f"is {_told(value)}" if key in config else "is missing"
    raise InvalidArgument(f"{field}.{key}", f"{field}.{key} {told}; it must be a text")


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(files("tzdata").joinpath("zones").read_text("utf-8").split())


def _parse_zone(field: str, name: str) -> ZoneInfo:
    if name not in _zone_names():
        raise InvalidArgument(
            field,
            f"{field} is {shown(name)}; it must be a zone of the IANA database, such as Europe/Berlin or UTC",
            value=name[:100],
        )
    return ZoneInfo(name)


def _parse_catch_up(field: str, value: object) -> int:
    """JSON numbers may come as floats; 3600.0 is 3600."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_CATCH_UP_S:
        whole_s = int(value)
        if whole_s == value:
            return whole_s
    raise InvalidArgument(
        field,
        f"{field} is {_told(value)}; it must be a whole number of seconds from 0 to {MAX_CATCH_UP_S}",
        value=_told(value),
        allowed=str(MAX_CATCH_UP_S),
    )


def _told(value: object) -> str:
    """Decoded JSON of any kind and size, as a message may quote it."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return shown(value)
        case float():
            return str(value)
        case int():
            return str(value) if abs(value) < 1 << 64 else "a number of more than 64 bits"
        case _:
            return "an object" if isinstance(value, Mapping) else "an array"
