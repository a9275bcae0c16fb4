"""Changes into the stream of a real NATS: as one batch or one by one, each once whatever was there before."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from server.cdc.changes import Outgoing
from server.cdc.outlet import Outlet
from server.cdc.position import Position
from server.events import stream
from server.events.batches import FEW
from server.events.bus import EventBus
from server.events.envelope import Event, encode
from server.events.json_text import read
from tests.fix_cdc import SETTINGS, Stored

PROJECT = str(uuid4())


@pytest.fixture
async def outlet(cdc_bus: EventBus) -> Outlet:
    """Of a relay that has just begun: it knows the last change."""
    await stream.ensure(cdc_bus, SETTINGS)
    return await began(cdc_bus)


async def began(bus: EventBus) -> Outlet:
    made = Outlet(bus, SETTINGS)
    await made.last()
    return made


def changes(count: int, commit_lsn: int = 16) -> list[Outgoing]:
    return [change(Position("slot", commit_lsn, number)) for number in range(1, count + 1)]


def change(position: Position) -> Outgoing:
    event = Event(
        id=position.event_id,
        type="cdc.INSERT.t",
        project_id=PROJECT,
        time=datetime.now(UTC),
        source="cdc",
        data=read(str(position.change).encode()),
    )
    return Outgoing(PROJECT, event.id, event.type, "INSERT", position, encode(event))


async def ids(stored: Stored) -> Sequence[str]:
    return [event.id for event in await stored.read()]


@pytest.mark.parametrize(("count", "batched"), [(1, False), (FEW, False), (FEW + 1, True), (300, True)])
async def test_a_few_need_no_batch(outlet: Outlet, stored: Stored, count: int, batched: bool) -> None:
    window = changes(count)
    await outlet.store(window)
    await outlet.store(changes(1, commit_lsn=17))
    assert await ids(stored) == [*(item.id for item in window), "slot-11-1"]
    assert ["Nats-Batch-Id" in headers for headers in stored.headers] == [batched] * count + [False]


@pytest.mark.parametrize("count", [FEW, FEW + 1])
async def test_what_is_stored_already_is_left_out(
    outlet: Outlet, cdc_bus: EventBus, stored: Stored, count: int
) -> None:
    window = changes(count)
    await outlet.store(window[:3])
    await (await began(cdc_bus)).store(window)
    await outlet.store(window)  # asleep meanwhile
    assert await ids(stored) == [item.id for item in window]


@pytest.mark.parametrize("count", [1, FEW, FEW + 1])
async def test_what_the_stream_knows_though_its_last_change_is_anothers_is_stored_once(
    outlet: Outlet, cdc_bus: EventBus, stored: Stored, count: int
) -> None:
    window = changes(count)
    await outlet.store(window[:1])
    await cdc_bus.jetstream.publish(f"{stream.PREFIX}cdc.INSERT.forged", b"{}")
    async with asyncio.timeout(10):
        await (await began(cdc_bus)).store(window)
    info = await cdc_bus.jetstream.stream_info(stream.NAME)
    assert info.state.messages == count + 1
