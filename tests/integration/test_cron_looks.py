"""The scheduler on a real Postgres and a real NATS: each tick once, whoever looks and whatever dies or is away."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest

from server.dispatch import cron_marks
from server.dispatch.cron import Cron
from server.dispatch.identity import delivery_id
from server.errors import Unavailable
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import Event
from server.events.publisher import Publisher
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.settings import Settings
from server.telemetry.metrics import Metrics
from server.triggers.conditions import ALWAYS
from server.triggers.definition import Trigger
from server.triggers.ticks import message_id
from tests.fix_runs import OwnNats, eventually
from tests.fix_triggers import StartProcess, add_function, add_trigger, change_trigger

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
SETTINGS = Settings(events_keep_hours=1, events_keep_mb=16)


def minutes(*offsets: int) -> list[datetime]:
    return [NOON + timedelta(minutes=offset) for offset in offsets]


class Hand:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.at = NOON + timedelta(seconds=1)

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return 0.0

    def go(self, minute: int, second: int = 1) -> None:
        """To that minute after noon."""
        self.at = NOON + timedelta(minutes=minute, seconds=second)


class Triggers:
    """In the place of the cache."""

    def __init__(self) -> None:
        self.all: list[Trigger] = []

    def add(self, schedule: str = "* * * * *", **config: Any) -> Trigger:
        self.all.append(
            Trigger(
                id=str(uuid4()),
                project_id=str(uuid4()),
                event_type="cron",
                config={"schedule": schedule, **config},
                target_type="function",
                function_id=str(uuid4()),
                workflow_id=None,
                conditions=ALWAYS,
                enabled=True,
                paused=False,
                since=NOON - timedelta(days=365),
                created_at=NOON,
                updated_at=NOON,
            )
        )
        return self.all[-1]

    async def scheduled(self) -> Sequence[Trigger]:
        return tuple(self.all)


class Dies:
    """A publisher whose process dies when everything is acknowledged and nothing marked."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    async def publish(self, events: Sequence[Event]) -> None:
        await self.publisher.publish(events)
        raise RuntimeError("killed")


class Site:
    """Schedulers on one database and one stream."""

    def __init__(self, pool: Pool, bus: EventBus) -> None:
        self.pool, self.bus = pool, bus
        self.clock, self.triggers, self.metrics = Hand(), Triggers(), Metrics()
        self.publisher = Publisher(bus, SETTINGS)

    def scheduler(self, publisher: Any = None, triggers: Any = None, events_keep_hours: float = 24) -> Cron:
        return Cron(
            self.pool,
            triggers or self.triggers,
            publisher or self.publisher,
            self.metrics,
            events_keep_hours=events_keep_hours,
            clock=self.clock,
        )

    async def published(self) -> list[Event]:
        """All that is in the stream, in its order."""
        state = (await self.bus.jetstream.stream_info(stream.NAME)).state
        found = [
            await self.bus.jetstream.get_msg(stream.NAME, number)
            for number in range(state.first_seq, state.last_seq + 1)
        ]
        return [stream.event_of(str(message.subject), message.data or b"") for message in found]

    async def fired(self, trigger: Trigger) -> list[datetime]:
        return [event.time for event in await self.published() if event.trigger_id == trigger.id]

    async def evaluated(self) -> datetime | None:
        async with transaction(self.pool) as conn:
            ((evaluated,),) = await (await conn.execute("SELECT evaluated FROM cron_state")).fetchall()
        return evaluated  # type: ignore[no-any-return]

    async def take_up(self, trigger: Trigger, minute: datetime, state: str = "running") -> None:
        """As the dispatcher does, or goes on to do."""
        event_id = message_id(trigger.id, minute)
        async with transaction(self.pool) as conn:
            await conn.execute(
                "INSERT INTO deliveries (id, project_id, trigger_id, event_id, event_type, sequence, state, due_at)"
                " VALUES (%s, %s, %s, %s, 'cron', 1, %s, now()) ON CONFLICT (id) DO UPDATE SET state = EXCLUDED.state",
                [delivery_id(trigger.id, event_id), trigger.project_id, trigger.id, event_id, state],
            )

    async def skipped(self) -> list[tuple[str, str, str]]:
        """Event id, outcome and message of each."""
        async with transaction(self.pool) as conn:
            cursor = await conn.execute(
                "SELECT event_id, outcome, error FROM deliveries d JOIN delivered_events USING (project_id, event_id)"
                " WHERE state = 'skipped' AND finished_at IS NOT NULL ORDER BY event_id"
            )
            rows = await cursor.fetchall()
        return [(event_id, outcome, error["message"]) for event_id, outcome, error in rows]

    def counted(self) -> dict[str, float]:
        verdicts = ("fired", "missed", "overlapped")
        found = {record.name: record.doubles[0] for record in self.metrics.numbers.records()}
        return {verdict: found.get(("atlas_cron_ticks_total", verdict), 0.0) for verdict in verdicts}


@pytest.fixture
async def site(pool: Pool, nats_url: str) -> AsyncIterator[Site]:
    """With an empty stream."""
    bus = EventBus(nats_url)
    await bus.start()
    await stream.ensure(bus, SETTINGS)
    await bus.jetstream.purge_stream(stream.NAME)
    yield Site(pool, bus)
    await bus.jetstream.delete_stream(stream.NAME)
    await bus.close()


async def test_each_tick_is_published_once_whoever_looks(site: Site) -> None:
    every, fifth = site.triggers.add(), site.triggers.add("*/5 * * * *", timezone="Asia/Kathmandu")
    workers = [site.scheduler() for _ in range(3)]
    for minute in range(7):
        site.clock.go(minute)
        answers = await asyncio.gather(*(worker.look() for worker in workers))
        assert any(answers)
        for worker in workers:
            assert await worker.look()  # there is nothing left
    assert await site.fired(every) == minutes(*range(7))
    assert await site.fired(fifth) == minutes(0, 5)
    assert await site.evaluated() == NOON + timedelta(minutes=6)
    assert site.counted() == {"fired": 9, "missed": 0, "overlapped": 0}
    (first, *_) = await site.published()
    assert first.data.value["scheduled_at"] == "2026-07-01T12:00:00Z"


async def test_one_that_dies_before_it_marks_leaves_the_tick_to_another(site: Site) -> None:
    trigger = site.triggers.add()
    await site.scheduler().look()
    site.clock.go(1)
    with pytest.raises(RuntimeError, match="killed"):
        await site.scheduler(Dies(site.publisher)).look()
    assert await site.evaluated() == NOON
    site.clock.go(1, 3)
    assert await site.scheduler().look()
    assert await site.fired(trigger) == minutes(0, 1)


async def test_a_tick_that_was_taken_up_before_it_was_marked_is_no_missed_one(site: Site) -> None:
    """And not published again, even after the time in which the stream knows it."""
    trigger, skipping = site.triggers.add(), site.triggers.add(overlap="skip")
    await site.scheduler().look()
    for each in (trigger, skipping):
        await site.take_up(each, NOON, "done")
    site.clock.go(1)
    with pytest.raises(RuntimeError, match="killed"):
        await site.scheduler(Dies(site.publisher)).look()
    for each in (trigger, skipping):
        await site.take_up(each, NOON + timedelta(minutes=1), "done")
    await site.bus.jetstream.purge_stream(stream.NAME)
    site.clock.go(5)
    assert await site.scheduler().look()
    assert await site.fired(trigger) == minutes(4, 5)  # GRACE_S
    assert await site.fired(skipping) == minutes(5)
    assert [(event_id.rpartition("T")[2], outcome) for event_id, outcome, _ in await site.skipped()].count(
        ("12:01Z", "missed")
    ) == 0
    assert site.counted()["missed"] == 4


async def test_missed_ticks_are_in_the_ledger_or_made_good(site: Site) -> None:
    lost, late = site.triggers.add(), site.triggers.add(catch_up_s=600)
    await site.scheduler().look()
    site.clock.go(30)
    await site.scheduler().look()
    assert await site.fired(lost) == minutes(0, 29, 30)
    assert await site.fired(late) == minutes(0, *range(21, 31))
    lines = {event_id: (outcome, message) for event_id, outcome, message in await site.skipped()}
    outcome, message = lines[message_id(lost.id, NOON + timedelta(minutes=1))]
    assert outcome == "missed"
    assert message.startswith("28 ticks from 2026-07-01T12:01:00Z to 2026-07-01T12:28:00Z came to nothing")
    assert len(lines) == 2
    assert site.counted() == {"fired": 14, "missed": 28 + 20, "overlapped": 0}


async def test_ticks_are_not_made_good_of_which_it_may_be_unknown_whether_they_ran(site: Site) -> None:
    """The trigger is of a time in which events were kept for longer."""
    trigger = site.triggers.add(catch_up_s=6 * 3600)
    await site.scheduler(events_keep_hours=0.5).look()
    site.clock.go(120)
    await site.scheduler(events_keep_hours=0.5).look()
    assert await site.fired(trigger) == minutes(0, *range(91, 121))


async def test_with_overlap_skip_one_waits_for_the_other(site: Site) -> None:
    trigger = site.triggers.add(overlap="skip")
    look = site.scheduler().look
    await look()
    site.clock.go(1)
    await look()  # the first is published and nobody has taken it up
    await site.take_up(trigger, NOON)
    site.clock.go(2)
    await look()
    await site.take_up(trigger, NOON, "held")
    site.clock.go(3)
    await look()
    await site.take_up(trigger, NOON, "done")
    site.clock.go(4)
    await look()
    assert await site.fired(trigger) == minutes(0, 4)
    assert [(event_id[-6:-1], outcome) for event_id, outcome, _ in await site.skipped()] == [
        ("12:01", "overlapped"),
        ("12:02", "overlapped"),
        ("12:03", "overlapped"),
    ]
    assert site.counted() == {"fired": 2, "missed": 0, "overlapped": 3}


async def test_with_overlap_queue_many_wait_but_not_all(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.triggers.ticks.MAX_QUEUED", 3)
    trigger = site.triggers.add(overlap="queue")
    look = site.scheduler().look
    for minute in range(5):
        site.clock.go(minute)
        await look()
    assert await site.fired(trigger) == minutes(0, 1, 2)
    await site.take_up(trigger, NOON, "dead")
    site.clock.go(5)
    await look()
    assert await site.fired(trigger) == minutes(0, 1, 2, 5)


async def test_what_nobody_takes_up_is_not_waited_for_for_ever(site: Site) -> None:
    """Its trigger was disabled before the tick came to the dispatcher, for example."""
    trigger = site.triggers.add(overlap="skip")
    await site.scheduler().look()
    async with transaction(site.pool) as conn:
        await conn.execute(
            "UPDATE cron_ticks SET published_at = now() - make_interval(secs => %s)", [cron_marks.UNSEEN_S + 1]
        )
    site.clock.go(1)
    await site.scheduler().look()
    assert await site.fired(trigger) == minutes(0, 1)


async def test_marks_are_forgotten_when_nothing_waits_for_them(site: Site) -> None:
    ended, waits, unseen, old = (site.triggers.add(overlap="skip") for _ in range(4))
    await site.scheduler().look()
    await site.take_up(ended, NOON, "done")
    await site.take_up(waits, NOON, "queued")
    async with transaction(site.pool) as conn:
        await conn.execute(
            "UPDATE cron_ticks SET published_at = now() - make_interval(secs => %s) WHERE trigger_id = ANY(%s::uuid[])",
            [cron_marks.UNSEEN_S + 1, [old.id, waits.id]],
        )
    await site.scheduler().sweep()
    async with transaction(site.pool) as conn:
        cursor = await conn.execute("SELECT trigger_id FROM cron_ticks")
        assert {trigger_id for (trigger_id,) in await cursor.fetchall()} == {waits.id, unseen.id}


async def test_a_wrong_clock_that_is_repaired_does_no_harm(site: Site) -> None:
    trigger = site.triggers.add()
    look = site.scheduler().look
    await look()
    site.clock.go(-3)  # a little: those minutes had their turn
    await look()
    site.clock.go(1)
    await look()
    assert await site.fired(trigger) == minutes(0, 1)
    site.clock.go(-600)  # it had been ten hours ahead
    await look()
    site.clock.go(-599)
    await look()
    assert await site.fired(trigger) == minutes(0, 1, -600, -599)


async def test_thousands_at_once_are_decided_and_published_in_parts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.dispatch.cron.PART", 20)
    monkeypatch.setattr("server.dispatch.cron.PART_TICKS", 50)
    for _ in range(33):
        site.triggers.add(catch_up_s=3600)
    await site.scheduler().look()
    site.clock.go(10)
    await site.scheduler().look()
    assert len({event.id for event in await site.published()}) == 33 * 11
    assert site.counted() == {"fired": 33 * 11, "missed": 0, "overlapped": 0}


async def test_while_nats_is_away_nothing_is_marked_and_nothing_is_lost(pool: Pool, own_nats: OwnNats) -> None:
    bus = EventBus(own_nats.url)
    await bus.start()
    site = Site(pool, bus)
    site.publisher = Publisher(bus, SETTINGS, patience_s=0.5)
    await site.publisher.start()
    trigger, skipping = site.triggers.add(), site.triggers.add(overlap="skip")
    await site.scheduler().look()
    await site.take_up(skipping, NOON, "done")
    await asyncio.to_thread(own_nats.stop)
    site.clock.go(1)
    for _ in range(3):
        with pytest.raises(Unavailable, match="Events cannot be stored now"):
            await site.scheduler().look()
    assert await site.evaluated() == NOON
    await asyncio.to_thread(own_nats.start)
    site.clock.go(1, 30)

    async def looked() -> bool:
        try:
            return await site.scheduler().look()
        except Unavailable:
            return False

    await eventually(looked)
    assert await site.fired(trigger) == await site.fired(skipping) == minutes(0, 1)
    assert await site.skipped() == []
    await bus.close()


async def test_one_whose_connection_breaks_is_no_obstacle(site: Site) -> None:
    """Its lock ends with its connection: the next one looks."""
    trigger = site.triggers.add()
    reached = asyncio.Event()

    class Hangs:
        async def publish(self, events: Sequence[Event]) -> None:
            reached.set()
            await asyncio.Event().wait()

    stuck = asyncio.create_task(site.scheduler(Hangs()).look())
    await reached.wait()
    assert not await site.scheduler().look()
    async with transaction(site.pool) as conn:
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            " AND datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert await eventually(site.scheduler().look)
    stuck.cancel()
    await asyncio.wait([stuck])
    assert await site.fired(trigger) == [NOON]


async def test_it_goes_on_by_itself_with_triggers_as_they_are(
    site: Site, pool: Pool, changes: Changes, project_id: str, start_process: StartProcess
) -> None:
    function_id = await add_function(pool, project_id)
    process = await start_process()
    config = {"schedule": "* * * * *"}
    since = NOON - timedelta(hours=1)
    kept, off, paused = [
        await add_trigger(pool, changes, function_id, event_type="cron", config=config, since=since, **columns)
        for columns in ({}, {"enabled": False}, {"paused": True})
    ]
    scheduler = Cron(
        pool, process.cache, site.publisher, site.metrics, clock=site.clock, sleep=lambda _: asyncio.sleep(0.01)
    )
    await scheduler.start()
    try:

        async def there(minute: int) -> bool:
            return await site.evaluated() == NOON + timedelta(minutes=minute)

        await eventually(lambda: there(0))
        await change_trigger(pool, changes, kept, "enabled = false")
        await change_trigger(pool, changes, off, "enabled = true")
        site.clock.go(1)
        await eventually(lambda: there(1))
    finally:
        await scheduler.close()
    seen = [(event.trigger_id, event.time) for event in await site.published()]
    first, second = minutes(0, 1)
    assert sorted(seen, key=str) == sorted([(kept, first), (paused, first), (off, second), (paused, second)], key=str)


async def test_rows_in_the_ledger_are_whole(site: Site) -> None:
    trigger = site.triggers.add()
    await site.scheduler().look()
    site.clock.go(10)
    await site.scheduler().look()
    async with transaction(site.pool) as conn:
        cursor = await conn.execute(
            "SELECT d.id, trigger_id, event_type, sequence, state, attempts, body FROM deliveries d"
            " JOIN delivered_events USING (project_id, event_id)"
        )
        (row,) = await cursor.fetchall()
    event_id = message_id(trigger.id, NOON + timedelta(minutes=1))
    assert row[:-1] == (delivery_id(trigger.id, event_id), trigger.id, "cron", 0, "skipped", 0)
    assert orjson.loads(row[-1])["id"] == event_id
