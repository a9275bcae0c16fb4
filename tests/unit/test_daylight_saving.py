"""What a schedule does where clocks are put forward and back, in zones that each do it in their own way."""

from datetime import UTC, datetime, timedelta

import pytest

from server.triggers.schedule import due, next_runs, parse_schedule

BERLIN, NEW_YORK, LORD_HOWE, APIA = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"


def local(text: str, zone: str, start: str, end: str) -> list[str]:
    """The firings later than `start` up to `end`, as the clock of the zone shows them, with its offset."""
    plan = parse_schedule({"schedule": text, "timezone": zone})
    window = [datetime.fromisoformat(edge).replace(tzinfo=plan.zone).astimezone(UTC) for edge in (start, end)]
    return [firing.astimezone(plan.zone).strftime("%d %H:%M %z") for firing in due(plan, *window)]


@pytest.mark.parametrize(
    ("zone", "text", "start", "end", "firings"),
    [
        # Berlin: 29 March 2026, 02:00 becomes 03:00; 25 October, 03:00 becomes 02:00
        (BERLIN, "30 2 * * *", "2026-03-28T12:00", "2026-03-30T12:00", ["29 03:00 +0200", "30 02:30 +0200"]),
        (BERLIN, "0,20,40 2 * * *", "2026-03-29T00:00", "2026-03-29T23:00", ["29 03:00 +0200"]),
        (BERLIN, "0 2,3 * * *", "2026-03-29T00:00", "2026-03-29T23:00", ["29 03:00 +0200"]),
        (BERLIN, "30 2-3 * * *", "2026-03-29T00:00", "2026-03-29T23:00", ["29 03:00 +0200", "29 03:30 +0200"]),
        (BERLIN, "30 2 28 3 *", "2026-03-28T12:00", "2026-03-29T23:00", []),
        (BERLIN, "30 * * * *", "2026-03-29T00:45", "2026-03-29T04:00", ["29 01:30 +0100", "29 03:30 +0200"]),
        (BERLIN, "30 2 * * *", "2026-10-24T12:00", "2026-10-26T04:00", ["25 02:30 +0200", "26 02:30 +0100"]),
        (BERLIN, "0 3 * * *", "2026-10-25T00:00", "2026-10-25T12:00", ["25 03:00 +0100"]),
        (
            BERLIN,
            "30 * * * *",
            "2026-10-25T01:00",
            "2026-10-25T04:00",
            ["25 01:30 +0200", "25 02:30 +0200", "25 02:30 +0100", "25 03:30 +0100"],
        ),
        # New York: 8 March 2026, 02:00 becomes 03:00; 1 November, 02:00 becomes 01:00
        (NEW_YORK, "15 2 * * 0", "2026-03-07T12:00", "2026-03-08T23:00", ["08 03:00 -0400"]),
        (NEW_YORK, "30 1 * * *", "2026-10-31T12:00", "2026-11-02T04:00", ["01 01:30 -0400", "02 01:30 -0500"]),
        (NEW_YORK, "0 1-2 1 11 *", "2026-11-01T00:00", "2026-11-01T12:00", ["01 01:00 -0400", "01 02:00 -0500"]),
        # Lord Howe, half an hour: 4 October 2026, 02:00 becomes 02:30; 5 April, 02:00 becomes 01:30
        (LORD_HOWE, "10 2 * * *", "2026-10-03T12:00", "2026-10-04T12:00", ["04 02:30 +1100"]),
        (LORD_HOWE, "45 2 * * *", "2026-10-03T12:00", "2026-10-04T12:00", ["04 02:45 +1100"]),
        (LORD_HOWE, "0 * * * *", "2026-10-04T00:30", "2026-10-04T03:30", ["04 01:00 +1030", "04 03:00 +1100"]),
        (LORD_HOWE, "45 1 * * *", "2026-04-04T12:00", "2026-04-05T12:00", ["05 01:45 +1100"]),
        (LORD_HOWE, "45 * * * *", "2026-04-05T01:00", "2026-04-05T02:00", ["05 01:45 +1100", "05 01:45 +1030"]),
        # Apia skipped 30 December 2011 whole
        (APIA, "0 9 * * *", "2011-12-29T12:00", "2011-12-31T12:00", ["31 00:00 +1400", "31 09:00 +1400"]),
        (APIA, "0 9 30 12 *", "2011-12-29T00:00", "2011-12-31T12:00", ["31 00:00 +1400"]),
        (APIA, "0 * 30 12 *", "2011-12-29T00:00", "2011-12-31T12:00", []),
        (APIA, "0 9 * * fri", "2011-12-29T00:00", "2011-12-31T12:00", ["31 00:00 +1400"]),
        # Beirut goes forward at midnight; Santiago goes back from midnight to 23:00 of the day before
        ("Asia/Beirut", "@daily", "2026-03-28T12:00", "2026-03-29T12:00", ["29 01:00 +0300"]),
        ("America/Santiago", "30 23 * * *", "2026-04-04T12:00", "2026-04-05T12:00", ["04 23:30 -0300"]),
        ("America/Santiago", "@daily", "2026-04-04T12:00", "2026-04-05T12:00", ["05 00:00 -0400"]),
        # St John's went back at a minute past midnight: the new day began twice
        ("America/St_Johns", "@daily", "2010-11-06T12:00", "2010-11-07T12:00", ["07 00:00 -0230"]),
        ("America/St_Johns", "30 23 * * *", "2010-11-06T12:00", "2010-11-07T12:00", ["06 23:30 -0230"]),
        # Dublin has its negative summer time in winter, Nepal a quarter of an hour
        ("Europe/Dublin", "30 1 * * *", "2026-10-24T12:00", "2026-10-25T12:00", ["25 01:30 +0100"]),
        ("Asia/Kathmandu", "0 6 * * *", "2026-10-24T12:00", "2026-10-25T12:00", ["25 06:00 +0545"]),
    ],
)  # fmt: skip
def test_clocks_are_put_forward_and_back(zone: str, text: str, start: str, end: str, firings: list[str]) -> None:
    assert local(text, zone, start, end) == firings


@pytest.mark.parametrize(
    ("zone", "day", "minutes"),
    [
        (BERLIN, "2026-03-29", 23 * 60),
        (BERLIN, "2026-10-25", 25 * 60),
        (NEW_YORK, "2026-03-08", 23 * 60),
        (NEW_YORK, "2026-11-01", 25 * 60),
        (LORD_HOWE, "2026-10-04", 23 * 60 + 30),
        (LORD_HOWE, "2026-04-05", 24 * 60 + 30),
        (APIA, "2011-12-30", 0),
    ],
)
def test_every_minute_is_every_real_minute(zone: str, day: str, minutes: int) -> None:
    plan = parse_schedule({"schedule": "* * * * *", "timezone": zone})
    midnight = datetime.fromisoformat(day).replace(tzinfo=plan.zone)
    start, end = midnight.astimezone(UTC), (midnight + timedelta(days=1)).astimezone(UTC)
    firings = due(plan, start, end)
    assert len(firings) == minutes
    assert firings == [start + n * timedelta(minutes=1) for n in range(1, minutes + 1)]


@pytest.mark.parametrize(
    ("zone", "text", "firing"),
    [
        ("Pacific/Kiritimati", "0 0 * * mon", "2026-07-05T10:00Z"),  # 14 hours ahead of UTC: there it is Monday
        ("Pacific/Kiritimati", "0 23 * * mon", "2026-07-06T09:00Z"),
        ("Pacific/Pago_Pago", "0 1 * * mon", "2026-07-06T12:00Z"),
        ("Pacific/Pago_Pago", "0 23 * * mon", "2026-07-07T10:00Z"),  # 11 hours behind: there it is Monday still
    ],
)
def test_a_day_is_a_day_of_the_zone(zone: str, text: str, firing: str) -> None:
    plan = parse_schedule({"schedule": text, "timezone": zone})
    assert next_runs(plan, datetime(2026, 7, 3, tzinfo=UTC), 1) == [datetime.fromisoformat(firing)]
