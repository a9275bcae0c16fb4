"""When a schedule fires: the five fields, what is refused, windows and previews."""

from datetime import UTC, datetime, timedelta

import pytest

from server.errors import InvalidArgument
from server.triggers.schedule import MAX_PREVIEW, MAX_WINDOW_S, Overlap, Schedule, due, next_runs, parse_schedule


def schedule(text: str) -> Schedule:
    return parse_schedule({"schedule": text})


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


# The fields


@pytest.mark.parametrize(
    ("text", "firings"),
    [
        ("0 * * * *", ["2026-07-01T00:00Z", "2026-07-01T01:00Z"]),
        ("*/20 9-10 * * *", ["2026-07-01T09:00Z", "2026-07-01T09:20Z", "2026-07-01T09:40Z", "2026-07-01T10:00Z"]),
        ("5/25 0 * * *", ["2026-07-01T00:05Z", "2026-07-01T00:30Z", "2026-07-01T00:55Z", "2026-07-02T00:05Z"]),
        ("7,3,5 8 * * *", ["2026-07-01T08:03Z", "2026-07-01T08:05Z", "2026-07-01T08:07Z"]),
        ("0 9-9 * * *", ["2026-07-01T09:00Z", "2026-07-02T09:00Z"]),
        ("0 0 * jan-MAR/2 *", ["2027-01-01T00:00Z", "2027-01-02T00:00Z"]),
        ("0 0 * * Mon", ["2026-07-06T00:00Z", "2026-07-13T00:00Z"]),
        ("0 0 * * FRI-SUN", ["2026-07-03T00:00Z", "2026-07-04T00:00Z", "2026-07-05T00:00Z", "2026-07-10T00:00Z"]),
        ("0 0 * * 7", ["2026-07-05T00:00Z"]),
        ("0 0 * * 0-7/7", ["2026-07-05T00:00Z", "2026-07-12T00:00Z"]),
        ("0 0 * * 7/2", ["2026-07-05T00:00Z", "2026-07-12T00:00Z"]),
        ("0 0 31 * *", ["2026-07-31T00:00Z", "2026-08-31T00:00Z", "2026-10-31T00:00Z"]),
        ("0 0 29 2 *", ["2028-02-29T00:00Z", "2032-02-29T00:00Z"]),
        ("0 0 31 2 1", ["2027-02-01T00:00Z", "2027-02-08T00:00Z"]),
        ("\t 0  0 1\t1 * ", ["2027-01-01T00:00Z"]),
        ("@hourly", ["2026-07-01T00:00Z", "2026-07-01T01:00Z"]),
        ("@daily", ["2026-07-01T00:00Z", "2026-07-02T00:00Z"]),
        ("@midnight", ["2026-07-01T00:00Z", "2026-07-02T00:00Z"]),
        ("@Weekly", ["2026-07-05T00:00Z", "2026-07-12T00:00Z"]),
        ("@monthly", ["2026-07-01T00:00Z", "2026-08-01T00:00Z"]),
        ("@yearly", ["2027-01-01T00:00Z", "2028-01-01T00:00Z"]),
        ("@annually", ["2027-01-01T00:00Z", "2028-01-01T00:00Z"]),
    ],
)
def test_the_fields(text: str, firings: list[str]) -> None:
    assert next_runs(schedule(text), at("2026-06-30T23:59:59Z"), len(firings)) == [at(firing) for firing in firings]


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("0 0 1,15 * *", [1, 15]),
        ("0 0 * * 5", [2, 9, 16, 23, 30]),
        ("0 0 13 * 5", [2, 9, 13, 16, 23, 30]),  # both restricted: either
        ("0 0 */10 * 5", [1, 2, 9, 11, 16, 21, 23, 30, 31]),  # a step restricts as well
        ("0 0 */1 * 5", [2, 9, 16, 23, 30]),  # but not this one
        ("0 0 13,* * 5", [2, 9, 16, 23, 30]),
        ("0 0 1-31 * 5", list(range(1, 32))),  # POSIX: only the asterisk is no restriction
    ],
)
def test_two_day_fields(text: str, days: list[int]) -> None:
    runs = next_runs(schedule(text), at("2026-09-30T23:59Z"), 31)
    assert [run.day for run in runs if run < at("2026-11-01T00:00Z")] == days


# What is refused


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "it must have five fields"),
        ("* * * *", "it must have five fields"),
        ("0 * * * * *", "it must have five fields"),
        ("0 0 1 1 * 2026", "it must have five fields"),
        ("@reboot", "it must have five fields"),
        ("@every 5m", "it must have five fields"),
        ("60 * * * *", r'minute has "60", which must be from 0 to 59$'),
        ("0 24 * * *", r'hour has "24", which must be from 0 to 23$'),
        ("0 0 0 * *", r'day of month has "0", which must be from 1 to 31$'),
        ("0 0 * 13 *", r'month has "13", which must be from 1 to 12 or one of JAN, FEB'),
        ("0 0 * * 8", r'day of week has "8", which must be from 0 to 7 or one of SUN, MON'),
        ("0 0 * * jan", r'day of week has "jan"'),
        ("mon * * * *", r'minute has "mon", which must be from 0 to 59$'),
        ("0 22-2 * * *", r'hour has the range "22-2", which runs backward'),
        ("0 0 * * fri-mon", "runs backward"),
        ("*/0 * * * *", "minute has the step 0, which must be from 1 to 60"),
        ("*/90 * * * *", "minute has the step 90, which must be from 1 to 60"),
        ("0 */25 * * *", "hour has the step 25, which must be from 1 to 24"),
        ("0 0 L * *", 'day of month has "l"'),
        ("0 0 15W * *", 'day of month has "15w"'),
        ("0 0 * * 5#2", 'day of week has "5#2"'),
        ("0 0 ? * 1", r'day of month has "\?"'),
        ("H * * * *", 'minute has "h"'),
        ("0~30 * * * *", 'minute has "0~30"'),
        ("-5 * * * *", 'minute has "-5"'),
        ("5- * * * *", 'minute has "5-"'),
        ("*-5 * * * *", r'minute has "\*-5"'),
        ("1/2/3 * * * *", 'minute has "1/2/3"'),
        (",1 * * * *", 'minute has ""'),
        ("1,,2 * * * *", 'minute has ""'),
        ("000 * * * *", 'minute has "000"'),
        ("٣ * * * *", 'minute has "٣"'),
        ("0\u00a00 1 1 *", "it must have five fields"),
        ("0 0 1 1 *\n", r'day of week has "\*\\n"'),
        ("0 0 31 2 *", "it would never run"),
        ("0 0 30-31 FEB *", "it would never run"),
        ("0 0 31 4,6,9,11,2 *", "it would never run"),
        ("0 0 31 2 */1", "it would never run"),
        ("*," * 300, "has 600 characters; at most 500"),
    ],
)
def test_a_schedule_is_refused(text: str, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule) as caught:
        schedule(text)
    assert caught.value.field == "config.schedule"
    assert caught.value.message.startswith("config.schedule ")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("schedule", None, "is null; it must be a text"),
        ("schedule", 5, "is 5; it must be a text"),
        ("timezone", None, "is null; it must be a text"),
        ("timezone", ["UTC"], "is an array; it must be a text"),
        ("timezone", "", 'is ""; it must be a zone of the IANA database'),
        ("timezone", "europe/berlin", "must be a zone of the IANA database"),
        ("timezone", "America", "must be a zone of the IANA database"),
        ("timezone", "../../etc/passwd", "must be a zone of the IANA database"),
        ("timezone", "Europe/Berlin\x00", "must be a zone of the IANA database"),
        ("timezone", "posix/Europe/Berlin", "must be a zone of the IANA database"),
        ("timezone", "localtime", "must be a zone of the IANA database"),
        ("timezone", "+02:00", "must be a zone of the IANA database"),
        ("catch_up_s", -1, "is -1; it must be a whole number of seconds from 0 to 86400"),
        ("catch_up_s", 86_401, "is 86401;"),
        pytest.param("catch_up_s", 10**5000, "is a number of more than 64 bits;", id="too long to be printed"),
        ("catch_up_s", 1.5, r"is 1\.5;"),
        ("catch_up_s", float("nan"), "is nan;"),
        ("catch_up_s", float("inf"), "is inf;"),
        ("catch_up_s", True, "is true;"),
        ("catch_up_s", "60", 'is "60";'),
        ("catch_up_s", None, "is null;"),
        ("catch_up_s", {}, "is an object;"),
        ("overlap", "replace", 'is "replace"; it must be one of allow, skip, queue'),
        ("overlap", False, "is false; it must be a text"),
    ],
)
def test_a_key_is_refused(key: str, value: object, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told) as caught:
        parse_schedule({"schedule": "* * * * *", key: value}, "config")
    assert caught.value.field == f"config.{key}"


def test_a_schedule_is_required() -> None:
    with pytest.raises(InvalidArgument, match=r"^triggers\[3\].config.schedule is missing; it must be a text$"):
        parse_schedule({}, "triggers[3].config")


def test_the_keys_and_their_defaults() -> None:
    plain = parse_schedule({"schedule": "@daily", "of somebody else": 1})
    assert (plain.text, plain.zone.key, plain.catch_up_s, plain.overlap) == ("@daily", "UTC", 0, Overlap.ALLOW)
    full = parse_schedule({"schedule": "@daily", "timezone": "Europe/Berlin", "catch_up_s": 3600.0, "overlap": "queue"})
    assert (full.zone.key, full.catch_up_s, full.overlap) == ("Europe/Berlin", 3600, Overlap.QUEUE)
    assert isinstance(full.catch_up_s, int)


# Windows and previews


def test_a_window_excludes_its_start_and_includes_its_end() -> None:
    plan = schedule("*/5 * * * *")
    assert due(plan, at("2026-07-01T00:00Z"), at("2026-07-01T00:10Z")) == [
        at("2026-07-01T00:05Z"),
        at("2026-07-01T00:10Z"),
    ]
    assert due(plan, at("2026-07-01T00:04:59.999Z"), at("2026-07-01T00:05Z")) == [at("2026-07-01T00:05Z")]
    assert due(plan, at("2026-07-01T00:05:00.001Z"), at("2026-07-01T00:09:59.999Z")) == []
    assert due(plan, at("2026-07-01T00:05Z"), at("2026-07-01T00:05Z")) == []
    assert due(plan, at("2026-07-01T00:05Z"), at("2026-06-01T00:05Z")) == []


def test_work_is_bounded() -> None:
    plan, now = schedule("* * * * *"), at("2026-07-01T00:00Z")
    assert len(due(plan, now, now + timedelta(seconds=MAX_WINDOW_S))) == MAX_WINDOW_S // 60
    with pytest.raises(ValueError, match="is longer than"):
        due(plan, now, now + timedelta(seconds=MAX_WINDOW_S + 1))
    for count in (0, MAX_PREVIEW + 1):
        with pytest.raises(ValueError, match="it must be from 1 to"):
            next_runs(plan, now, count)


def test_a_preview_ends_with_its_horizon() -> None:
    leap_days = next_runs(schedule("0 0 29 2 *"), at("2026-07-01T00:00Z"), MAX_PREVIEW)
    assert [day.year for day in leap_days] == [2028, 2032, 2036, 2040, 2044]
    assert next_runs(schedule("0 0 29 2 *"), at("2096-03-01T00:00Z"), 1) == [at("2104-02-29T00:00Z")]


def test_a_preview_ends_where_it_is_told() -> None:
    start, end = at("2026-07-01T00:00Z"), at("2026-07-03T00:00Z")
    assert next_runs(schedule("@daily"), start, 9, until=end) == [at("2026-07-02T00:00Z"), end]
    assert next_runs(schedule("@daily"), end, 9, until=start) == []
    assert len(next_runs(schedule("@yearly"), start, 99, until=start + timedelta(days=50 * 366))) == 20
