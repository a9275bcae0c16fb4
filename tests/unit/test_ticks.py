"""Which ticks fire, which are missed and which overlap, whatever the clock, the process and the users do in between."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest

from server.triggers.schedule import parse_schedule
from server.triggers.ticks import (
    GRACE_S,
    MAX_BACK_S,
    MAX_QUEUED,
    CronTrigger,
    Look,
    Missed,
    Tick,
    Verdict,
    decide,
    decide_all,
    look,
    message_id,
)

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
LONG_AGO = NOON - timedelta(days=365)


def minutes(*offsets: int) -> list[datetime]:
    """Minutes counted from noon."""
    return [NOON + timedelta(minutes=offset) for offset in offsets]


def trigger(
    schedule: str = "* * * * *",
    *,
    catch_up_s: int = 0,
    overlap: str = "allow",
    since: datetime = LONG_AGO,
    unfinished: Collection[datetime] = (),
    fired: Collection[datetime] = (),
) -> CronTrigger:
    config = {"schedule": schedule, "catch_up_s": catch_up_s, "overlap": overlap}
    return CronTrigger(id="t", schedule=parse_schedule(config), since=since, unfinished=unfinished, fired=fired)


def after_pause(pause_min: int, which: CronTrigger) -> tuple[list[datetime], list[datetime], Missed | None]:
    """What a look at noon makes of `which` when the last was `pause_min` minutes ago: fired, overlapping, missed."""
    ticks, missed = decide(which, Look(*minutes(-pause_min, 0)), NOON)
    firing = [tick.minute for tick in ticks if tick.verdict is Verdict.FIRE]
    return firing, [tick.minute for tick in ticks if tick.verdict is Verdict.OVERLAP], missed


def lost(first_min: int, last_min: int, count: int) -> Missed:
    return Missed("t", minutes(first_min)[0], minutes(last_min)[0], count)


# The clock


@pytest.mark.parametrize(
    ("evaluated_min", "now_s", "window_min"),
    [
        (None, 0, (-1, 0)),  # first start
        (None, 59.999, (-1, 0)),
        (-1, 0, (-1, 0)),  # goes on
        (-1, 0.3, (-1, 0)),
        (0, 59.9, (0, 0)),  # looked twice in a minute
        (0, 60, (0, 1)),
        (-600, 0, (-600, 0)),  # slept, or jumped forward
        (1, 59.9, (1, 1)),  # a worker whose clock is behind
        (MAX_BACK_S // 60, 0, (MAX_BACK_S // 60, MAX_BACK_S // 60)),
        (MAX_BACK_S // 60 + 1, 0, (-1, 0)),  # the clock had been wrong
        (525_600, 0, (-1, 0)),
    ],
)
def test_the_window_of_a_look(evaluated_min: int | None, now_s: float, window_min: tuple[int, int]) -> None:
    evaluated = None if evaluated_min is None else minutes(evaluated_min)[0]
    assert look(evaluated, NOON + timedelta(seconds=now_s)) == Look(*minutes(*window_min))


def test_looks_minute_by_minute_fire_every_tick_once() -> None:
    which, evaluated, fired = trigger("*/3 * * * *"), None, list[datetime]()
    for second in range(0, 1800, 7):
        now = NOON + timedelta(seconds=second)
        window = look(evaluated, now)
        ticks, missed = decide(which, window, now)
        assert missed is None
        fired += [tick.minute for tick in ticks]
        evaluated = window.evaluated
    assert fired == minutes(*range(0, 30, 3))


def test_a_clock_that_goes_back_a_little_fires_nothing_twice() -> None:
    evaluated, fired = None, list[datetime]()
    for minute in (0, 1, 2, 0, 1, 2, 3, 4):
        now = minutes(minute)[0]
        window = look(evaluated, now)
        ticks, missed = decide(trigger(), window, now)
        assert missed is None
        fired += [tick.minute for tick in ticks]
        evaluated = window.evaluated
    assert fired == minutes(0, 1, 2, 3, 4)


def test_a_clock_that_goes_back_between_look_and_decision_changes_nothing() -> None:
    window = Look(*minutes(-10 * 1440, 0))
    assert decide(trigger(), window, NOON - timedelta(days=9)) == decide(trigger(), window, NOON)


def test_a_clock_that_was_a_year_ahead_is_put_right_and_ticks_go_on() -> None:
    ahead = NOON + timedelta(days=365)
    window = look(minutes(-1)[0], ahead)
    ticks, missed = decide(trigger(), window, ahead)
    assert [tick.minute for tick in ticks] == [ahead - timedelta(minutes=1), ahead]
    assert missed is not None
    assert (missed.first, missed.count) == (NOON, 1440)
    ticks, missed = decide(trigger(), look(window.evaluated, NOON), NOON)
    assert ([tick.minute for tick in ticks], missed) == ([NOON], None)


# The process


def test_a_pause_within_the_grace_misses_nothing() -> None:
    now = NOON + timedelta(seconds=GRACE_S - 61)
    ticks, missed = decide(trigger(), Look(*minutes(-2, 0)), now)
    assert ([tick.minute for tick in ticks], missed) == (minutes(-1, 0), None)


def test_a_longer_pause_misses_what_is_older() -> None:
    assert after_pause(10, trigger()) == (minutes(-1, 0), [], lost(-9, -2, 8))
    assert after_pause(600, trigger("0 9 * * *")) == ([], [], lost(-180, -180, 1))
    assert after_pause(600, trigger("30 12 * * *")) == ([], [], None)


def test_a_look_that_could_not_be_published_in_time_misses_no_more_than_it_looked_at() -> None:
    window = Look(*minutes(-1, 0))
    assert decide(trigger(), window, NOON + timedelta(minutes=10)) == ([], lost(0, 0, 1))
    ticks, missed = decide(trigger(catch_up_s=660), window, NOON + timedelta(minutes=10))
    assert ([tick.minute for tick in ticks], missed) == (minutes(0), None)


def test_missed_ticks_are_caught_up_within_the_window() -> None:
    hourly = trigger("0 * * * *", catch_up_s=2 * 3600)
    assert after_pause(301, hourly) == (minutes(-60, 0), [], lost(-300, -120, 4))
    assert after_pause(90, hourly) == (minutes(-60, 0), [], None)
    assert after_pause(301, trigger("0 * * * *", catch_up_s=86_400)) == (
        minutes(-300, -240, -180, -120, -60, 0),
        [],
        None,
    )


def test_a_month_is_counted_for_its_last_day_alone() -> None:
    month = 30 * 1440
    _, _, missed = after_pause(month, trigger("0 * * * *"))
    assert missed == lost(-month + 60, -60, 24)
    _, _, missed = after_pause(month, trigger("0 9 15 * *"))
    assert missed == Missed("t", datetime(2026, 6, 15, 9, tzinfo=UTC), None, 0)


def test_what_was_fired_before_a_crash_is_not_fired_or_missed_again() -> None:
    assert after_pause(4, trigger(fired=minutes(-3, 0))) == (minutes(-1), [], lost(-2, -2, 1))
    assert after_pause(4, trigger(unfinished=minutes(-3, 0))) == (minutes(-1), [], lost(-2, -2, 1))
    assert after_pause(4, trigger(overlap="skip", fired=minutes(-3, -2, -1, 0))) == ([], [], None)


# The users


def test_ticks_before_a_trigger_was_written_are_none_of_its() -> None:
    assert after_pause(10, trigger(since=minutes(-1)[0])) == (minutes(0), [], None)
    assert after_pause(10, trigger(since=NOON - timedelta(seconds=61))) == (minutes(-1, 0), [], None)
    assert after_pause(10, trigger(since=minutes(-5)[0])) == (minutes(-1, 0), [], lost(-4, -2, 3))
    assert after_pause(10, trigger(since=minutes(-5)[0], catch_up_s=3600)) == (minutes(-4, -3, -2, -1, 0), [], None)


def test_a_trigger_written_after_the_minute_waits_for_the_next() -> None:
    written = NOON + timedelta(seconds=20)
    assert decide(trigger(since=written), Look(*minutes(-1, 0)), NOON + timedelta(seconds=21)) == ([], None)
    ticks, _ = decide(trigger(since=written), Look(*minutes(0, 1)), NOON + timedelta(seconds=60))
    assert [tick.minute for tick in ticks] == minutes(1)


def test_a_trigger_written_by_a_worker_whose_clock_is_ahead_is_no_error() -> None:
    assert after_pause(1, trigger(since=minutes(3)[0])) == ([], [], None)


# Overlap


def test_allow_fires_beside_what_runs() -> None:
    assert after_pause(1, trigger(unfinished=minutes(-7, -3))) == (minutes(0), [], None)


def test_skip_fires_only_when_nothing_runs() -> None:
    assert after_pause(1, trigger(overlap="skip")) == (minutes(0), [], None)
    assert after_pause(1, trigger(overlap="skip", unfinished=minutes(-7))) == ([], minutes(0), None)


def test_skip_fires_the_newest_of_several() -> None:
    assert after_pause(4, trigger(overlap="skip", catch_up_s=600)) == (minutes(0), minutes(-3, -2, -1), None)


def test_queue_fires_until_too_many_wait() -> None:
    assert after_pause(1, trigger(overlap="queue", unfinished=minutes(-7, -3))) == (minutes(0), [], None)
    nearly_full = trigger(overlap="queue", catch_up_s=600, unfinished=minutes(*range(-MAX_QUEUED - 8, -10)))
    assert len(nearly_full.unfinished) == MAX_QUEUED - 2
    assert after_pause(4, nearly_full) == (minutes(-3, -2), minutes(-1, 0), None)
    overfull = trigger(overlap="queue", catch_up_s=600, unfinished=minutes(*range(-MAX_QUEUED - 12, -10)))
    assert len(overfull.unfinished) == MAX_QUEUED + 2
    assert after_pause(4, overfull) == ([], minutes(-3, -2, -1, 0), None)


# All together


def test_every_worker_gives_a_tick_the_same_id() -> None:
    assert message_id("t", NOON) == Tick("t", NOON, Verdict.FIRE).message_id == "cron:t:2026-07-01T12:00Z"


def test_all_triggers_of_a_look() -> None:
    every, hourly = trigger(), trigger("0 * * * *")
    ticks, missed = decide_all([every, hourly], Look(*minutes(-3, 0)), NOON)
    assert [tick.minute for tick in ticks] == minutes(-1, 0, 0)
    assert missed == [lost(-2, -2, 1)]
