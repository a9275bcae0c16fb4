"""Events of the past on a real NATS, whose messages may be lost on their way."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.errors import TimeoutError as NoAnswer
from nats.js import JetStreamContext

from server.events import history as history_module
from server.events import stream
from server.events.bus import EventBus
from server.events.history import History
from server.events.json_text import read
from server.events.publisher import Publisher
from tests.integration.test_event_stream import SETTINGS, an_event, removed


@pytest.fixture
async def events_bus(nats_url: str) -> AsyncIterator[EventBus]:
    """With ten events in the stream."""
    bus = EventBus(nats_url)
    await bus.start()
    await removed(bus)
    publisher = Publisher(bus, SETTINGS)
    await publisher.start()
    await publisher.publish([an_event(data=read(b"%d" % number)) for number in range(10)])
    yield bus
    await removed(bus)
    await bus.close()


async def sequences(history: History) -> list[int]:
    found: list[int] = []
    await read_into(found, history)
    return found


async def read_into(found: list[int], history: History) -> None:
    while past := await history.some():
        found.extend(message.sequence for message in past)


async def test_all_that_there_are_in_their_order(events_bus: EventBus) -> None:
    async with History(events_bus, "order.>", sequence=3) as history:
        assert await sequences(history) == [*range(3, 11)]


@pytest.mark.parametrize("lost", [{1}, {4}, {4, 5, 6, 7}, {8}, {10}, {9, 10}, {*range(1, 11)}])
async def test_what_was_lost_on_the_way_is_never_passed_over(
    events_bus: EventBus, monkeypatch: pytest.MonkeyPatch, lost: set[int]
) -> None:
    """As when the connection ends in the middle of an answer: NATS takes for delivered what it sent."""
    monkeypatch.setattr(history_module, "AT_ONCE", 4)
    monkeypatch.setattr(history_module, "WAIT_S", 0.5)
    fetch = JetStreamContext.PullSubscription.fetch

    async def lossy(self: Any, *given: Any, **named: Any) -> Any:
        arrived = [each for each in await fetch(self, *given, **named) if each.metadata.sequence.stream not in lost]
        if not arrived:
            raise NoAnswer
        return arrived

    monkeypatch.setattr(JetStreamContext.PullSubscription, "fetch", lossy)
    found: list[int] = []
    async with History(events_bus, "order.>", sequence=1) as history:
        with pytest.raises(NoAnswer):
            await read_into(found, history)
    following = max(found, default=0) + 1
    monkeypatch.setattr(JetStreamContext.PullSubscription, "fetch", fetch)
    async with History(events_bus, "order.>", sequence=following) as history:
        assert found + await sequences(history) == [*range(1, 11)]


async def test_what_was_removed_meanwhile_is_no_loss(events_bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "AT_ONCE", 4)
    monkeypatch.setattr(history_module, "WAIT_S", 0.5)
    async with History(events_bus, "order.>", sequence=1) as history:
        assert len(await history.some()) == 4
        await events_bus.jetstream.purge_stream(stream.NAME, seq=8)
        assert await sequences(history) == [8, 9, 10]
    async with History(events_bus, "order.>", sequence=1) as history:
        await events_bus.jetstream.purge_stream(stream.NAME)
        assert await history.some() == []
