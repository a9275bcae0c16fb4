"""Windows of time laid end to end hold every firing once, a preview shows the same, and fields mean what cron means."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.triggers.crontab import parse_crontab
from server.triggers.schedule import MAX_WINDOW_S, Schedule, due, next_runs, parse_schedule

MINUTE = timedelta(minutes=1)

# A day on which each zone puts its clock forward or back, or a plain one
TURNS = st.sampled_from(
    [
        ("UTC", "2026-01-01"),
        ("Europe/Berlin", "2026-03-29"),
        ("Europe/Berlin", "2026-10-25"),
        ("America/New_York", "2026-03-08"),
        ("America/New_York", "2026-11-01"),
        ("Australia/Lord_Howe", "2026-04-05"),
        ("Australia/Lord_Howe", "2026-10-04"),
        ("Pacific/Apia", "2011-12-30"),
        ("America/St_Johns", "2010-11-07"),
        ("America/Santiago", "2026-04-05"),
        ("Asia/Beirut", "2026-03-29"),
        ("Africa/Monrovia", "1972-01-07"),  # by 44 minutes and a half
    ]
)


def items(first: int, last: int) -> st.SearchStrategy[str]:
    """One item of a field that croniter reads as we do: it takes a-a for the whole cycle."""
    value = st.integers(first, last)
    step = st.integers(1, last - first + 1).map("/{}".format)
    ranges = st.tuples(value, value).filter(lambda ab: ab[0] < ab[1]).map(lambda ab: f"{ab[0]}-{ab[1]}")
    return st.one_of(
        value.map(str),
        ranges,
        st.tuples(ranges, step).map("".join),
        step.map("*{}".format),
    )


def fields(first: int, last: int) -> st.SearchStrategy[str]:
    return st.just("*") | st.lists(items(first, last), min_size=1, max_size=3).map(",".join)


def values(first: int, last: int) -> st.SearchStrategy[str]:
    return st.lists(st.integers(first, last).map(str), min_size=1, max_size=3).map(",".join)


# What makes two day fields restricted is read in as many ways as there are crons; for plain values all agree
DAYS = st.one_of(
    st.tuples(fields(1, 31), fields(1, 12), st.just("*")),
    st.tuples(st.just("*"), fields(1, 12), fields(0, 6)),
    st.tuples(values(1, 31), fields(1, 12), values(0, 6)),
)
SCHEDULES = st.tuples(st.tuples(fields(0, 59), fields(0, 23)), DAYS).map(lambda parts: " ".join(parts[0] + parts[1]))
OFTEN = st.tuples(fields(0, 59), fields(0, 23), st.just("*"), st.just("*"), fields(0, 6)).map(" ".join)


def plan(text: str, zone: str) -> Schedule:
    return parse_schedule({"schedule": text, "timezone": zone})


def around(day: str, start_s: float) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(seconds=start_s)


@given(st.text() | st.text("0123456789*/,- @ABCDEFJMNORSTUWYabcdly\t", max_size=40))
def test_any_text(text: str) -> None:
    try:
        crontab = parse_crontab("schedule", text)
    except InvalidArgument as error:
        assert error.field == "schedule"  # noqa: PT017
    else:
        assert min(crontab.minutes, crontab.hours, crontab.days, crontab.months, crontab.weekdays) > 0


@given(OFTEN, TURNS, st.floats(-86_400, 86_400), st.lists(st.floats(0, 30_000), max_size=5))
@settings(deadline=None)
def test_windows_end_to_end_hold_every_firing_once(
    text: str, turn: tuple[str, str], start_s: float, lengths: list[float]
) -> None:
    zone, day = turn
    schedule, start = plan(text, zone), around(day, start_s)
    edges = [start]
    for length in lengths:
        edges.append(edges[-1] + timedelta(seconds=length))
    parts = [firing for a, b in pairwise(edges) for firing in due(schedule, a, b)]
    assert parts == due(schedule, start, edges[-1])
    assert parts == sorted(set(parts))
    assert all(start < firing <= edges[-1] and firing == firing.replace(second=0, microsecond=0) for firing in parts)


@given(OFTEN, TURNS, st.floats(-86_400, 86_400), st.integers(1, 100))
@settings(deadline=None)
def test_a_preview_shows_what_will_be_due(text: str, turn: tuple[str, str], start_s: float, count: int) -> None:
    zone, day = turn
    schedule, start = plan(text, zone), around(day, start_s)
    end = start + timedelta(seconds=MAX_WINDOW_S)
    preview = next_runs(schedule, start, count)
    assert len(preview) == count
    assert [run for run in preview if run <= end] == due(schedule, start, min(end, preview[-1]))


@given(OFTEN, TURNS)
@settings(deadline=None, max_examples=50)
def test_a_day_of_firings_is_what_the_rule_says(text: str, turn: tuple[str, str]) -> None:
    """The rule in its own words, minute by minute, against the search that passes hours and days over."""
    zone, day = turn
    schedule, start = plan(text, zone), around(day, -43_200)
    wanted, latest = [], (start - timedelta(days=2)).astimezone(schedule.zone).replace(tzinfo=None)
    clock = ZoneInfo(zone)
    at = start - timedelta(days=2)
    while at < start + timedelta(days=2):
        at += MINUTE
        shown = at.astimezone(clock).replace(tzinfo=None)
        if schedule.crontab.every_hour:
            fires = schedule.crontab.includes(shown)
        else:
            # every reading of the clock that has now been reached, and had not been before
            reached = range(1, (shown - latest) // MINUTE + 1)
            fires = any(schedule.crontab.includes(latest + n * MINUTE) for n in reached)
        latest = max(latest, shown)
        if fires and at > start:
            wanted.append(at)
    assert due(schedule, start, start + timedelta(days=2)) == wanted


@given(SCHEDULES, st.integers(0, 4_000_000_000))
@settings(deadline=None)
def test_the_fields_mean_what_they_mean_to_croniter(text: str, at_s: int) -> None:
    after = datetime.fromtimestamp(at_s, UTC)
    try:
        schedule = plan(text, "UTC")
    except InvalidArgument as error:
        assert "it would never run" in error.message  # noqa: PT017
        return
    ours = next_runs(schedule, after, 3)
    oracle = croniter(text, after)
    assert ours == [oracle.get_next(datetime) for _ in ours]
