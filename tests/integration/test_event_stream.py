"""Events on a real NATS: stored once, kept through deaths of the server, and the stream that nobody else may own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StreamConfig

from server.errors import InvalidArgument, Unavailable
from server.events import batches, stream
from server.events.batches import Entry, Refused
from server.events.bus import EventBus
from server.events.envelope import Event
from server.events.json_text import read
from server.events.publisher import Publisher
from server.settings import Settings
from tests.fix_runs import OwnNats, eventually

PROJECT, ANOTHER = str(uuid4()), str(uuid4())
SETTINGS = Settings(events_keep_hours=1, events_keep_mb=16)


def an_event(**fields: Any) -> Event:
    values = {"id": str(uuid4()), "type": "order.paid", "project_id": PROJECT, "source": "test", "data": read(b"1")}
    return Event(**{**values, "time": datetime.now(UTC), **fields})


async def stored(bus: EventBus) -> list[Event]:
    """All that is in the stream, in its order."""
    state = (await bus.jetstream.stream_info(stream.NAME)).state
    if not state.messages:
        return []
    subscription = await bus.jetstream.pull_subscribe(f"{stream.PREFIX}>", stream=stream.NAME)
    try:
        found: list[Event] = []
        while len(found) < state.messages:
            for message in await subscription.fetch(500, timeout=5):
                await message.ack()
                found.append(stream.event_of(message.subject, message.data))
        return found
    finally:
        await subscription.unsubscribe()


@pytest.fixture
async def events_bus(nats_url: str) -> AsyncIterator[EventBus]:
    """Without a stream of events, before and after."""
    bus = EventBus(nats_url)
    await bus.start()
    await removed(bus)
    yield bus
    await removed(bus)
    await bus.close()


async def removed(bus: EventBus) -> None:
    for info in await bus.jetstream.streams_info():
        if any(subject.startswith("atlasdb.") for subject in info.config.subjects or ()):
            await bus.jetstream.delete_stream(info.config.name or "")


@pytest.fixture
async def publisher(events_bus: EventBus) -> Publisher:
    made = Publisher(events_bus, SETTINGS)
    await made.start()
    return made


class TestPublish:
    async def test_what_is_acknowledged_is_there_in_its_order(self, publisher: Publisher, events_bus: EventBus) -> None:
        events = [an_event(type=f"a.n{number}") for number in range(100)]
        answers = await publisher.publish(events)
        assert await stored(events_bus) == events
        assert [answer.id for answer in answers] == [event.id for event in events]
        assert [answer.sequence for answer in answers] == list(range(1, 101))
        assert not any(answer.duplicate for answer in answers)

    async def test_an_event_is_stored_once(self, publisher: Publisher, events_bus: EventBus) -> None:
        event = an_event()
        (first,) = await publisher.publish([event])
        (second,) = await publisher.publish([an_event(id=event.id, data=read(b"2"))])
        assert (second.sequence, second.duplicate) == (first.sequence, True)
        assert await stored(events_bus) == [event]

    async def test_no_project_can_suppress_anothers_events(self, publisher: Publisher, events_bus: EventBus) -> None:
        ours, theirs = an_event(id="1"), an_event(id="1", project_id=ANOTHER)
        answers = await publisher.publish([ours, theirs])
        assert [answer.duplicate for answer in answers] == [False, False]
        assert await stored(events_bus) == [ours, theirs]

    async def test_one_that_is_too_large_stops_all(self, publisher: Publisher, events_bus: EventBus) -> None:
        large = an_event(data=read(b'"' + b"x" * 1_048_000 + b'"'))
        with pytest.raises(InvalidArgument) as caught:
            await publisher.publish([an_event(), large])
        assert caught.value.reason == "EVENT_TOO_LARGE"
        assert await stored(events_bus) == []

    async def test_the_largest_fits(self, publisher: Publisher, events_bus: EventBus) -> None:
        event = an_event(id="x" * 128, source="ä" * 255, subject="ä" * 255, data=read(b'"' + b"x" * 999_998 + b'"'))
        await publisher.publish([event])
        assert await stored(events_bus) == [event]

    async def test_many_are_stored_as_a_whole_or_not_at_all(self, publisher: Publisher, events_bus: EventBus) -> None:
        events = [an_event(type=f"a.n{number}") for number in range(100)]
        assert await publisher.publish_whole(events)
        assert await stored(events_bus) == events
        large = an_event(data=read(b'"' + b"x" * 1_048_000 + b'"'))
        for stays_out in (events[50], large):
            assert not await publisher.publish_whole([an_event(), an_event(), stays_out, an_event()])
        await events_bus.jetstream.delete_stream(stream.NAME)
        assert not await publisher.publish_whole([an_event(), an_event()])
        await publisher.start()
        assert await stored(events_bus) == []

    @pytest.mark.parametrize("known", [[], [3]], ids=["as a whole", "one by one, because one is known"])
    async def test_in_order_none_comes_before_an_earlier_one(
        self, publisher: Publisher, events_bus: EventBus, known: list[int]
    ) -> None:
        events = [an_event(type=f"a.n{number}") for number in range(20)]
        await publisher.publish([events[number] for number in known])
        await publisher.publish_in_order(events)
        first = [events[number] for number in known]
        assert await stored(events_bus) == [*first, *(event for event in events if event not in first)]

    async def test_a_server_that_knows_no_batches_stored_none(self, events_bus: EventBus) -> None:
        """It takes each for a message of its own, and says of the last that it is stored."""

        async def acknowledge(message: Msg) -> None:
            if message.reply:
                await message.respond(b'{"stream": "S", "seq": 3}')

        client = events_bus.client
        await client.subscribe("elsewhere", cb=acknowledge)
        entries = [Entry("elsewhere", b"1", {"Nats-Msg-Id": str(number)}) for number in range(3)]
        with pytest.raises(Refused, match=r"2\.12"):
            await batches.store(client, entries, 5)
        assert await batches.store_one(client, entries[0], 5) == 3

    async def test_a_full_stream_refuses_and_loses_nothing(self, publisher: Publisher, events_bus: EventBus) -> None:
        data = read(b'"' + b"x" * 900_000 + b'"')
        acknowledged = 0
        refused: Unavailable | None = None
        while refused is None:
            event = an_event(data=data)
            try:
                await publisher.publish([event])
            except Unavailable as why:
                refused = why
            else:
                acknowledged += 1
        assert refused.reason == "EVENT_STREAM_FULL"
        assert len(await stored(events_bus)) == acknowledged > 10

        durable = ConsumerConfig(durable_name="d", ack_policy=AckPolicy.EXPLICIT)
        await events_bus.jetstream.add_consumer(stream.NAME, durable)
        assert await stream.trim(events_bus, SETTINGS) == 0  # nothing is done yet
        subscription = await events_bus.jetstream.pull_subscribe_bind("d", stream.NAME)
        for message in await subscription.fetch(3, timeout=5):
            await message.ack_sync()
        assert await stream.trim(events_bus, SETTINGS) == 3  # what waits stays
        left = acknowledged - 3
        assert len(await stored(events_bus)) == left
        for message in await subscription.fetch(left, timeout=5):
            await message.ack_sync()
        removed = await stream.trim(events_bus, SETTINGS)
        assert 0 < removed < left  # half of it is kept
        assert await stream.trim(events_bus, SETTINGS) == 0
        (answer,) = await publisher.publish([event])  # the one that was refused
        assert not answer.duplicate

    @pytest.mark.parametrize("count", [1, 3])
    async def test_a_stream_that_was_deleted_is_made_again(
        self, publisher: Publisher, events_bus: EventBus, count: int
    ) -> None:
        await events_bus.jetstream.delete_stream(stream.NAME)
        events = [an_event() for _ in range(count)]
        await publisher.publish(events)
        assert await stored(events_bus) == events


class TestStream:
    async def test_any_number_may_start_it_and_the_last_sets_its_limits(self, events_bus: EventBus) -> None:
        await asyncio.gather(*(stream.ensure(events_bus, SETTINGS) for _ in range(8)))
        await stream.ensure(events_bus, Settings(events_keep_hours=2, events_keep_mb=32))
        config = (await events_bus.jetstream.stream_info(stream.NAME)).config
        assert (config.max_age, config.max_bytes) == (7200.0, 32 * 1024**2)
        assert config.duplicate_window == 120.0

    async def test_what_its_operator_set_stays(self, events_bus: EventBus) -> None:
        await stream.ensure(events_bus, SETTINGS)
        config = (await events_bus.jetstream.stream_info(stream.NAME)).config
        await events_bus.jetstream.update_stream(config.evolve(max_msgs_per_subject=77))
        await stream.ensure(events_bus, Settings(events_keep_hours=2))
        found = (await events_bus.jetstream.stream_info(stream.NAME)).config
        assert (found.max_msgs_per_subject, found.max_age) == (77, 7200.0)

    @pytest.mark.parametrize(
        "foreign",
        [
            StreamConfig(name=stream.NAME, subjects=["atlasdb.other"]),
            StreamConfig(name=stream.NAME, subjects=["atlasdb.events.>"], retention=RetentionPolicy.WORK_QUEUE),
            StreamConfig(name="SOMEBODYS", subjects=["atlasdb.>"]),
        ],
    )
    async def test_a_foreign_one_is_told_and_left_alone(self, events_bus: EventBus, foreign: StreamConfig) -> None:
        made = await events_bus.jetstream.add_stream(foreign)
        with pytest.raises(stream.StreamUnusable, match=r"ATLAS_EVENTS.*another"):
            await stream.ensure(events_bus, SETTINGS)
        assert (await events_bus.jetstream.stream_info(foreign.name or "")).config == made.config

    async def test_one_without_room_says_what_to_lower(self, events_bus: EventBus) -> None:
        with pytest.raises(stream.StreamUnusable, match="ATLAS_EVENTS_KEEP_MB, which is 999999"):
            await stream.ensure(events_bus, Settings(events_keep_mb=999_999))
        assert await stream.trim(events_bus, SETTINGS) == 0  # there is none


class TestDeaths:
    async def test_what_is_acknowledged_while_the_server_dies_and_comes_back_is_stored_once(
        self, own_nats: OwnNats
    ) -> None:
        bus = EventBus(own_nats.url)
        await bus.start()
        publisher = Publisher(bus, SETTINGS, patience_s=30)
        await publisher.start()
        acknowledged: list[str] = []
        enough = asyncio.Event()

        async def publish_for_ever(number: int) -> None:
            for count in range(10**6):
                batch = [an_event(id=f"{number}-{count}-{place}") for place in range(1 + number)]
                acknowledged.extend(answer.id for answer in await publisher.publish(batch))
                if enough.is_set():
                    return

        async def more() -> None:
            seen = len(acknowledged)

            async def grown() -> bool:
                return len(acknowledged) > seen + 50

            await eventually(grown, within_s=30)

        publishing = [asyncio.create_task(publish_for_ever(number)) for number in range(8)]
        await more()
        for kill in (False, True):
            await asyncio.to_thread(own_nats.kill if kill else own_nats.stop)
            await asyncio.to_thread(own_nats.start)
            await more()
        enough.set()
        await asyncio.gather(*publishing)
        ids = [event.id for event in await stored(bus)]
        assert len(ids) == len(set(ids))
        assert set(acknowledged) == set(ids)
        await bus.close()

    async def test_a_server_that_stays_away_is_told(self, own_nats: OwnNats) -> None:
        bus = EventBus(own_nats.url)
        await bus.start()
        publisher = Publisher(bus, SETTINGS, patience_s=0.3)
        await publisher.start()
        await asyncio.to_thread(own_nats.stop)
        event = an_event()
        with pytest.raises(Unavailable) as caught:
            await publisher.publish([event])
        assert (caught.value.reason, caught.value.retry_after_ms) == ("EVENT_BUS_UNAVAILABLE", 1_000)
        await asyncio.to_thread(own_nats.start)

        async def back() -> bool:
            return bus.connected

        await eventually(back)
        await publisher.publish([event])
        assert await stored(bus) == [event]
        await bus.close()

    async def test_a_server_that_is_away_at_the_start_gets_its_stream_later(self, own_nats: OwnNats) -> None:
        bus = EventBus(own_nats.url)
        await bus.start()
        publisher = Publisher(bus, SETTINGS, patience_s=30, try_s=0.5)
        await asyncio.to_thread(own_nats.stop)
        await publisher.start()
        publishing = asyncio.create_task(publisher.publish([event := an_event()]))
        await asyncio.to_thread(own_nats.start)
        await publishing
        assert await stored(bus) == [event]
        await bus.close()

    async def test_calls_that_wait_take_only_so_much_memory(self, own_nats: OwnNats) -> None:
        bus = EventBus(own_nats.url)
        await bus.start()
        publisher = Publisher(bus, SETTINGS, patience_s=30)
        await publisher.start()
        await asyncio.to_thread(own_nats.stop)
        data = read(b'"' + b"x" * 999_000 + b'"')
        waiting = [asyncio.create_task(publisher.publish([an_event(data=data)])) for _ in range(33)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await publisher.publish([an_event(data=data)])
        for task in waiting:
            task.cancel()
        with contextlib.suppress(Unavailable):
            await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.to_thread(own_nats.start)
        await publisher.publish([an_event()])
        await bus.close()
