"""When a schedule fires next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from server.errors import FailedPrecondition, InvalidArgument
from server.events.json_text import read
from server.triggers.configuration import require_config
from server.triggers.patterns import CRON
from server.triggers.retry import parse_whole
from server.triggers.rows import Record
from server.triggers.schedule import MAX_PREVIEW, next_runs, parse_schedule

DEFAULT_COUNT: Final = 5
FIRST_YEAR: Final = 1970
LAST_YEAR: Final = 2199


@dataclass(frozen=True, slots=True)
class Preview:
    """`runs` are in UTC, `local` the same moments as clocks of the zone show them, in RFC 3339."""

    timezone: str
    runs: Sequence[datetime]
    local: Sequence[str]


def preview(config: Mapping[str, object], after: datetime, count: object = 0) -> Preview:
    """The next firings later than `after`: `count` of them, 0 for DEFAULT_COUNT; fewer when 20 years have no more.

    InvalidArgument names the key of `config` that is wrong, the count or the moment.
    """
    if not FIRST_YEAR <= after.year <= LAST_YEAR:
        raise InvalidArgument(
            "after",
            f"after lies in the year {after.year}; it must be from {FIRST_YEAR} to {LAST_YEAR}",
            value=str(after.year),
            allowed=str(LAST_YEAR),
        )
    count = parse_whole("count", count, 0, MAX_PREVIEW) or DEFAULT_COUNT
    require_config(CRON, config)
    schedule = parse_schedule(config)
    runs = next_runs(schedule, after, count)
    local = [run.astimezone(schedule.zone).isoformat(timespec="seconds") for run in runs]
    return Preview(schedule.zone.key, runs, local)


def preview_of(record: Record, after: datetime, count: int = 0) -> Preview:
    """Of a trigger, whether it is enabled or not. FailedPrecondition when it has no schedule."""
    if record.event_type != CRON:
        raise FailedPrecondition(
            f"The trigger answers {record.event_type} and has no schedule; a cron trigger has one",
            reason="TRIGGER_NOT_SCHEDULED",
            metadata={"trigger_id": record.id, "event_type": record.event_type},
        )
    return preview(read(record.config.encode()).value, after, count)
