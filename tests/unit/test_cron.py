"""When the scheduler looks, whatever the clock does; what a tick is in the stream and in the ledger."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import orjson
import pytest

from server.dispatch import cron
from server.dispatch.cron import NAP_S, RETRY_S, Cron, nap_s
from server.dispatch.cron_events import event_of, minute_of, missed, overlapped
from server.dispatch.cron_plan import Plan
from server.dispatch.identity import delivery_id
from server.errors import Unavailable
from server.events.envelope import decode, encode
from server.telemetry.metrics import Metrics
from server.triggers.conditions import ALWAYS, AllOf
from server.triggers.definition import Trigger
from server.triggers.parsing import parse
from server.triggers.schedule import parse_schedule
from server.triggers.ticks import CronTrigger, Look, Missed, message_id

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
TRIGGER, PROJECT = "7f1c2d5e-9a56-4c0b-8f43-5d3f6c1e2a90", "00000000-0000-4000-8000-000000000001"


class Stop(Exception):
    """The test has seen enough."""


class Time:
    """A clock that moves when somebody sleeps; `jumps` are seconds by which it is put at the nth sleep."""

    def __init__(self, start: datetime, jumps: dict[int, float] | None = None) -> None:
        self.at = start
        self.slept: list[float] = []
        self.jumps = jumps or {}

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.at += timedelta(seconds=seconds + self.jumps.get(len(self.slept), 0))


class Looking(Cron):
    """Notes when it looks; `answers` are what the looks come to, True for those beyond."""

    def __init__(self, time: Time, looks: int, answers: list[bool | Exception] | None = None) -> None:
        self.time, self.looks, self.answers = time, looks, answers or []
        self.seen: list[datetime] = []
        super().__init__(cast(Any, None), cast(Any, None), cast(Any, None), Metrics(), clock=time, sleep=time.sleep)

    async def look(self) -> bool:
        if len(self.seen) == self.looks:
            raise asyncio.CancelledError
        self.seen.append(self.time.now())
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer


async def looks_of(time: Time, looks: int, answers: list[bool | Exception] | None = None) -> list[float]:
    """When it looked, in seconds after noon."""
    scheduler = Looking(time, looks, answers)
    await scheduler.start()
    assert scheduler._task is not None
    await asyncio.wait([scheduler._task])
    return [(seen - NOON).total_seconds() for seen in scheduler.seen]


async def test_it_looks_at_the_start_and_when_a_minute_begins() -> None:
    time = Time(NOON + timedelta(seconds=17.25))
    assert await looks_of(time, 4) == [17.25, 60, 120, 180]
    assert max(time.slept) <= NAP_S


async def test_a_clock_that_is_put_forward_or_a_machine_that_slept_is_seen_soon() -> None:
    an_hour_later = await looks_of(Time(NOON, {3: 3600.0}), 3)
    assert an_hour_later == [0, 3615, 3660]


async def test_a_clock_that_is_put_back_is_seen_too() -> None:
    assert await looks_of(Time(NOON, {2: -3600.0}), 3) == [0, -3590, -3540]
    assert await looks_of(Time(NOON, {2: -5.0}), 3) == [0, 60, 120]  # not into another minute


async def test_what_fails_or_is_done_elsewhere_is_tried_again_until_it_is_done() -> None:
    away = Unavailable("away", reason="AWAY")
    looked = await looks_of(Time(NOON), 6, [away, RuntimeError("a fault"), False, False, True])
    assert looked == [0, RETRY_S, 2 * RETRY_S, 3 * RETRY_S, 4 * RETRY_S, 60]


async def test_a_look_that_takes_long_leaves_out_no_minute() -> None:
    time = Time(NOON)
    slow = Looking(time, 3)
    noted: Callable[[], Any] = slow.look

    async def look() -> bool:
        done = bool(await noted())
        time.at += timedelta(seconds=70)
        return done

    slow.look = look  # type: ignore[method-assign]
    await slow.start()
    assert slow._task is not None
    await asyncio.wait([slow._task])
    assert [(seen - NOON).total_seconds() for seen in slow.seen] == [0, 75, 150]  # in minutes 0, 1 and 2


@pytest.mark.parametrize(("second", "nap"), [(0, NAP_S), (54.5, NAP_S), (58.5, 1.5), (59.999999, 0.000001)])
def test_it_sleeps_until_the_next_minute_at_most(second: float, nap: float) -> None:
    assert nap_s(NOON + timedelta(seconds=second)) == pytest.approx(nap)


def a_trigger(conditions: AllOf = ALWAYS, **config: Any) -> Trigger:
    return Trigger(
        id=TRIGGER,
        project_id=PROJECT,
        event_type="cron",
        config={"schedule": "*/5 * * * *", **config},
        target_type="function",
        function_id=TRIGGER,
        workflow_id=None,
        conditions=conditions,
        enabled=True,
        paused=False,
        since=NOON - timedelta(days=365),
        created_at=NOON,
        updated_at=NOON,
    )


def test_a_tick_says_when_and_why() -> None:
    trigger = a_trigger(timezone="Europe/Berlin")
    event = event_of(trigger, parse_schedule(trigger.config), NOON)
    assert orjson.loads(encode(event)) == {
        "id": f"cron:{TRIGGER}:2026-07-01T12:00Z",
        "type": "cron",
        "project_id": PROJECT,
        "time": "2026-07-01T12:00:00Z",
        "source": "cron",
        "trigger_id": TRIGGER,
        "data": {
            "schedule": "*/5 * * * *",
            "timezone": "Europe/Berlin",
            "scheduled_at": "2026-07-01T12:00:00Z",
            "local_time": "2026-07-01T14:00:00+02:00",
        },
    }
    assert decode(encode(event)) == event
    again = event_of(trigger, parse_schedule(dict(trigger.config)), NOON)
    assert encode(again) == encode(event), "a look that is made again publishes the same bytes"


def plan_of(trigger: Trigger, gap_min: int, **told: Any) -> Plan:
    schedule, plan = parse_schedule(trigger.config), Plan()
    known = CronTrigger(id=trigger.id, schedule=schedule, since=trigger.since, **told)
    plan.add(trigger, schedule, known, Look(NOON - timedelta(minutes=gap_min), NOON), NOON)
    return plan


def test_ticks_that_others_wait_for_are_marked() -> None:
    assert [event.time for event in plan_of(a_trigger(), 1).events] == [NOON]
    assert plan_of(a_trigger(), 1).marks == []
    for overlap in ("skip", "queue"):
        (mark,) = plan_of(a_trigger(overlap=overlap), 1).marks
        assert (mark.trigger_id, mark.minute) == (TRIGGER, NOON)
    never = parse([{"field": "timezone", "op": "eq", "value": "Asia/Tokyo"}])
    plan = plan_of(a_trigger(never, overlap="skip"), 1)
    assert (len(plan.events), plan.marks) == (1, [])  # it becomes no delivery, whose end there were


def test_what_overlaps_is_one_row_for_a_look() -> None:
    plan = plan_of(a_trigger(overlap="skip", catch_up_s=3600), 12)
    assert [event.time for event in plan.events] == [NOON]
    (row,) = plan.skipped
    assert (row.outcome, plan.overlapped, plan.missed) == ("overlapped", 2, 0)
    first = message_id(TRIGGER, NOON - timedelta(minutes=10))
    assert (row.event_id, row.id) == (first, delivery_id(TRIGGER, first))
    assert row.error == {
        "reason": "TICK_OVERLAPPED",
        "message": "2 ticks from 2026-07-01T11:50:00Z to 2026-07-01T11:55:00Z came to nothing"
        " because earlier ones are not finished",
    }
    running = plan_of(a_trigger(overlap="skip"), 1, unfinished=[NOON - timedelta(hours=1)])
    assert (running.events, running.overlapped) == ([], 1)


def test_what_is_missed_is_one_row_for_a_look() -> None:
    plan = plan_of(a_trigger(), 60)
    (row,) = plan.skipped
    assert (row.outcome, plan.missed, len(plan.events)) == ("missed", 11, 1)
    assert row.error == {
        "reason": "TICK_MISSED",
        "message": "11 ticks from 2026-07-01T11:05:00Z to 2026-07-01T11:55:00Z came to nothing"
        " because nobody looked at the schedule in time",
    }
    event = decode(row.body.encode())
    assert (event.id, event.time) == (row.event_id, NOON - timedelta(minutes=55))


def told(*, first_h: float, last_h: float | None, count: int) -> str:
    """What is said of ticks so many hours before noon."""
    trigger = a_trigger()
    first = NOON - timedelta(hours=first_h)
    found = Missed(TRIGGER, first, None if last_h is None else NOON - timedelta(hours=last_h), count)
    return missed(trigger, parse_schedule(trigger.config), found).error["message"].partition(" came to nothing")[0]


def test_a_gap_of_more_than_a_day_is_told_as_far_as_it_is_counted() -> None:
    assert told(first_h=1, last_h=1, count=1) == "The tick of 2026-07-01T11:00:00Z"
    whole = "Ticks from 2026-06-28T12:00:00Z to 2026-07-01T11:00:00Z, 7 of them in the last day,"
    assert told(first_h=72, last_h=1, count=7) == whole
    none = "Ticks since 2026-06-28T12:00:00Z, none of them in the last day before they were looked at,"
    assert told(first_h=72, last_h=None, count=0) == none


def test_the_minute_of_a_tick_is_in_its_id() -> None:
    assert minute_of(message_id(TRIGGER, NOON)) == NOON
    for other in ("", "x", "cron:1:2026-07-01", "ü" * 20):
        assert minute_of(other) is None


def test_a_schedule_that_cannot_be_read_stops_no_other() -> None:
    assert cron._parse(a_trigger(timezone="Mars/Olympus"), 86_400) is None
    trigger = a_trigger()
    schedule = parse_schedule(trigger.config)
    assert cron._parse(trigger, 86_400) == schedule
    assert overlapped(trigger, schedule, [NOON]).project_id == PROJECT
