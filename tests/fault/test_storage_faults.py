"""Stored objects and their events when something dies in between: nothing half, nothing lost, nothing told twice."""

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from server.errors import NotFound, Unavailable
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import Event
from server.events.outbox import Relay
from server.events.publisher import Publisher
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.settings import Settings
from server.storage import objects
from server.storage.blobs import BlobsUnavailable
from tests.fix_outbox import add, an_event, left
from tests.fix_runs import OwnNats, eventually
from tests.fix_storage import Store

ROOT = Path(__file__).parents[2]
HELLO = hashlib.sha256(b"hello").hexdigest()
SETTINGS = Settings(events_keep_hours=1, events_keep_mb=16)


class Died(BaseException):
    """What a process does at once."""


async def test_a_writer_that_dies_before_the_row_leaves_what_was_there_and_garbage_that_goes(
    store: Store, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(project_id, content=b"before")

    async def die(*args: object) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(objects, "lock", die)
        with pytest.raises(Died):
            await store.put(project_id)
    assert (await store.storage.get(project_id, "files", "a.txt")).content == b"before"
    assert len(await store.events()) == 1
    assert await store.blobs.read(project_id, HELLO, 5) == b"hello"
    assert await store.sweeper.sweep() == 0
    assert await store.sweeper.sweep(older_than_s=0) == 1
    assert await store.blobs.read(project_id, HELLO, 5) is None
    assert await store.rows("SELECT blob_bytes FROM storage_usage") == [(6,)]


async def test_a_writer_that_dies_before_the_content_is_written_leaves_nothing(store: Store, project_id: str) -> None:
    def die() -> None:
        raise Died

    store.blobs.before_write = die
    with pytest.raises(Died):
        await store.put(project_id)
    store.blobs.before_write = lambda: None
    with pytest.raises(NotFound):
        await store.storage.get(project_id, "files", "a.txt")
    assert await store.sweeper.sweep(older_than_s=0) == 1
    assert await store.events() == []
    await store.put(project_id)
    assert (await store.storage.get(project_id, "files", "a.txt")).content == b"hello"


async def test_a_sweeper_that_dies_between_store_and_table_is_made_good(
    store: Store, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(project_id)
    await store.storage.delete(project_id, "files", "a.txt")
    real_remove = store.blobs.inner.remove

    async def die(owner: str, hashes: Sequence[str]) -> None:
        await real_remove(owner, hashes)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(store.blobs.inner, "remove", die)
        with pytest.raises(Died):
            await store.sweeper.sweep(older_than_s=0)
    await store.put(project_id)  # the content is noted already, but not there
    assert (await store.storage.get(project_id, "files", "a.txt")).content == b"hello"
    assert await store.sweeper.sweep(older_than_s=0) == 0


async def test_a_store_that_is_away_changes_nothing_and_says_so(store: Store, project_id: str) -> None:
    await store.put(project_id, content=b"before")

    def away() -> None:
        raise BlobsUnavailable("away")

    store.blobs.before_write = away
    with pytest.raises(Unavailable) as caught:
        await store.put(project_id)
    assert caught.value.reason == "STORAGE_UNAVAILABLE"
    assert (await store.storage.get(project_id, "files", "a.txt")).content == b"before"
    assert len(await store.events()) == 1


@pytest.fixture
async def bus(own_nats: OwnNats) -> AsyncIterator[EventBus]:
    made = EventBus(own_nats.url)
    await made.start()
    yield made
    await made.close()


async def published(bus: EventBus) -> list[str]:
    """Ids of what is in the stream, in its order."""
    state = (await bus.jetstream.stream_info(stream.NAME)).state
    messages = [await bus.jetstream.get_msg(stream.NAME, number) for number in range(1, state.last_seq + 1)]
    return [stream.event_of(message.subject or "", message.data or b"").id for message in messages]


async def test_a_relay_that_dies_before_it_deletes_tells_nothing_twice(
    pool: Pool, changes: Changes, bus: EventBus, project_id: str
) -> None:
    publisher = Publisher(bus, SETTINGS)
    await publisher.start()
    await add(pool, changes, *(an_event(project_id, str(number)) for number in range(30)))

    class Dies:
        async def publish_in_order(self, events: Sequence[Event]) -> None:
            await publisher.publish_in_order(events)
            raise Died

    with pytest.raises(Died):
        await Relay(pool, changes, Dies()).relay()
    assert await left(pool) == 30
    await add(pool, changes, an_event(project_id, "30"))
    assert await Relay(pool, changes, publisher).relay() == 31
    assert await published(bus) == [str(number) for number in range(31)]


async def test_events_survive_a_nats_that_is_killed_again_and_again(
    pool: Pool, changes: Changes, bus: EventBus, own_nats: OwnNats, project_id: str
) -> None:
    publisher = Publisher(bus, SETTINGS, patience_s=1.0, try_s=0.3)
    await publisher.start()
    relay = Relay(pool, changes, publisher, poll_s=0.05)
    await changes.start()
    await relay.start()
    for number in range(60):
        await add(pool, changes, an_event(project_id, str(number)))
        if number % 20 == 10:
            await asyncio.to_thread(own_nats.kill)
        if number % 20 == 15:
            await asyncio.to_thread(own_nats.start)

    async def all_told() -> bool:
        return await left(pool) == 0

    await eventually(all_told, 30)
    await relay.close()
    told = await published(bus)
    assert sorted(told, key=int) == [str(number) for number in range(60)]


RELAY = """
import asyncio, sys
from server.events.bus import EventBus
from server.events.outbox import Relay
from server.events.publisher import Publisher
from server.postgres.changes import Changes
from server.postgres.control import open_pool
from server.settings import Settings

async def main(database, nats):
    bus, changes = EventBus(nats), Changes(database)
    await bus.start()
    async with open_pool(database) as pool:
        publisher = Publisher(bus, Settings(events_keep_hours=1, events_keep_mb=16))
        relay = Relay(pool, changes, publisher, poll_s=0.01)
        await changes.start()
        await relay.start()
        print("started", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_events_survive_relays_that_are_killed_again_and_again(
    pool: Pool, changes: Changes, bus: EventBus, own_nats: OwnNats, control_url: str, project_id: str
) -> None:
    await Publisher(bus, SETTINGS).start()
    number = 0
    for _ in range(6):
        relay = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RELAY, control_url, own_nats.url,
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert relay.stdout
        await relay.stdout.readline()
        for _ in range(40):
            await add(pool, changes, an_event(project_id, str(number)))
            number += 1
        relay.send_signal(signal.SIGKILL)
        await relay.wait()
    async with transaction(pool) as conn:  # what a killed one had open is ended by the server
        await conn.execute("SELECT FROM event_outbox FOR UPDATE")
    await Relay(pool, changes, Publisher(bus, SETTINGS)).relay()
    assert await left(pool) == 0
    assert await published(bus) == [str(each) for each in range(number)]
