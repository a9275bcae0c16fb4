"""The five fields of cron, as POSIX has them, with the names, steps and @hourly words that every cron has added.

    schedule  minute hour day-of-month month day-of-week, parted by blanks; or one of MACROS
    field     item[,item]…
    item      *   n   a-b, each with an optional /step;   n/step is n-last/step
    value     a number, or in the last two fields a name such as JAN or MON, in either case; Sunday is 0 and 7

A range runs upward and a step is no longer than its field: what other crons wrap around or quietly round is refused,
and so are the extensions of single products (L W # ? H ~, seconds, years, @reboot, @every), which the next one reads
differently. A day field is restricted unless it has `*` or `*/1` in it; when both are, either one is enough.

croniter, the known library, is the oracle of the tests and not the parser: it takes all of these extensions, reads
`9-9` as every hour, and `0 0 2 * */1` as every day.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import reduce
from operator import or_
from typing import Final

from server.errors import InvalidArgument
from server.fields import shown

MAX_SCHEDULE_CHARS: Final = 500  # five fields that list every value one by one have 360

MACROS: Final[Mapping[str, str]] = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_ITEM: Final = re.compile(r"(?:(\*)|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?")
_LONGEST: Final = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days of a month, in its longest year


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    first: int
    last: int
    highest: int  # the largest number one may write
    names: Mapping[str, int]


def _named(first: int, names: str) -> Mapping[str, int]:
    return {name: number for number, name in enumerate(names.split(), first)}


_PARTS: Final = (
    _Part("minute", 0, 59, 59, {}),
    _Part("hour", 0, 23, 23, {}),
    _Part("day of month", 1, 31, 31, {}),
    _Part("month", 1, 12, 12, _named(1, "jan feb mar apr may jun jul aug sep oct nov dec")),
    _Part("day of week", 0, 6, 7, _named(0, "sun mon tue wed thu fri sat")),
)


@dataclass(frozen=True, slots=True)
class Crontab:
    """Which local times it names. Each set is an integer whose bit n stands for n; Sunday is bit 0."""

    minutes: int
    hours: int
    days: int
    months: int
    weekdays: int
    either_day: bool  # both day fields are restricted, and one of them is enough

    @property
    def every_hour(self) -> bool:
        return self.hours == (1 << 24) - 1

    def includes_day(self, day: date) -> bool:
        """Whether it names this date; a datetime is taken for its date."""
        if not self.months >> day.month & 1:
            return False
        by_month, by_week = self.days >> day.day & 1, self.weekdays >> day.isoweekday() % 7 & 1
        return bool(by_month | by_week if self.either_day else by_month & by_week)

    def includes(self, local: datetime) -> bool:
        """Whether it names this minute, as a clock on the wall shows it; any zone is ignored."""
        return bool(self.minutes >> local.minute & self.hours >> local.hour & 1) and self.includes_day(local)


def parse_crontab(field: str, text: str) -> Crontab:
    """The schedule `text`; InvalidArgument when it breaks a rule of this module, or when it names no date at all."""
    if len(text) > MAX_SCHEDULE_CHARS:
        raise InvalidArgument(
            field,
            f"{field} has {len(text)} characters; at most {MAX_SCHEDULE_CHARS} are allowed",
            used=str(len(text)),
            allowed=str(MAX_SCHEDULE_CHARS),
        )
    try:
        return _parse(text.strip(" \t").lower())
    except _BrokenRule as broken:
        raise InvalidArgument(field, f"{field} is {shown(text)}; {broken}", value=text[:100]) from None


class _BrokenRule(Exception):
    pass


def _parse(text: str) -> Crontab:
    words = re.split(r"[ \t]+", MACROS.get(text, text))
    if len(words) != len(_PARTS):
        raise _BrokenRule(
            "it must have five fields (minute, hour, day of month, month, day of week) "
            f"or be one of {', '.join(MACROS)}"
        )
    minutes, hours, days, months, weekdays = (_parse_part(part, word) for part, word in zip(_PARTS, words, strict=True))
    by_month, by_week = ({"*", "*/1"}.isdisjoint(word.split(",")) for word in (words[2], words[4]))
    longest = max(_LONGEST[month] for month in range(1, 13) if months >> month & 1)
    if by_month and not by_week and not days & (2 << longest) - 1:
        raise _BrokenRule("it would never run, as none of its months has such a day")
    return Crontab(minutes, hours, days, months, weekdays, either_day=by_month and by_week)


def _parse_part(part: _Part, word: str) -> int:
    values = (value for item in word.split(",") for value in _parse_item(part, item))
    return reduce(or_, (1 << (0 if value > part.last else value) for value in values))  # the 7 of Sunday is its 0


def _parse_item(part: _Part, item: str) -> range:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise _BrokenRule(
            f"its {part.name} has {shown(item)}, which must be *, a value or a range a-b, each with an optional /step, "
            "or a list of these with commas and no blanks"
        )
    star, low_text, high_text, step_text = match.groups()
    size = part.last - part.first + 1
    step = int(step_text) if step_text else 1
    if not 1 <= step <= size:
        raise _BrokenRule(f"its {part.name} has the step {step}, which must be from 1 to {size}")
    if star:
        return range(part.first, part.last + 1, step)
    low = _parse_value(part, low_text)
    if high_text is None:
        return range(low, max(low, part.last) + 1 if step_text else low + 1, step)
    high = _parse_value(part, high_text)
    if high == 0 < low:
        high = part.highest  # FRI-SUN: here Sunday ends the week
    if low > high:
        raise _BrokenRule(f"its {part.name} has the range {shown(item)}, which runs backward; write it as two ranges")
    return range(low, high + 1, step)


def _parse_value(part: _Part, value: str) -> int:
    number = int(value) if value.isdigit() else part.names.get(value, -1)
    if not part.first <= number <= part.highest:
        names = f" or one of {', '.join(part.names).upper()}" if part.names else ""
        raise _BrokenRule(
            f"its {part.name} has {shown(value)}, which must be from {part.first} to {part.highest}{names}"
        )
    return number
