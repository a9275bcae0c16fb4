"""Change data capture of one test: a relay from the session's tenants database into a stream of the test's own."""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from nats.js.api import ConsumerConfig
from nats.js.errors import NotFoundError
from psycopg import AsyncConnection

from server.cdc.relay import Relay
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import Change, Event
from server.postgres.tenants import Tenants
from server.settings import Settings
from server.stack import postgres
from server.stack.account import servant
from server.stack.part import Part, PartFailed, Running, start
from server.telemetry.metrics import Metrics
from tests.fix_runs import DEADLINE_S, eventually
from tests.fix_stack import QUICK

SETTINGS = Settings(events_keep_hours=1, events_keep_mb=256)
FORGOTTEN_S = 300.0
"""For which a reader may have nothing to read."""


@dataclass
class Stored:
    """The stream as it grows: what is in it, read once."""

    bus: EventBus
    events: list[Event] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    _subscription: Any = None

    async def read(self) -> list[Event]:
        """Everything there is now."""
        try:
            state = (await self.bus.jetstream.stream_info(stream.NAME)).state
        except NotFoundError:
            return self.events
        if self._subscription is None:
            self._subscription = await self.bus.jetstream.pull_subscribe(
                f"{stream.PREFIX}>", stream=stream.NAME, config=ConsumerConfig(inactive_threshold=FORGOTTEN_S)
            )
        while len(self.events) < state.messages:
            for message in await self._subscription.fetch(500, timeout=5):
                await message.ack()
                self.events.append(stream.event_of(message.subject, message.data))
                self.headers.append(message.headers or {})
                self.bodies.append(message.data)
        return self.events

    async def of(self, project_id: str, count: int, within_s: float = DEADLINE_S) -> list[Event]:
        """The project's events once there are `count` of them; AssertionError when there are more."""

        async def enough() -> list[Event] | None:
            found = [event for event in await self.read() if event.project_id == project_id]
            return found if len(found) >= count else None

        found = await eventually(enough, within_s)
        assert len(found) == count, [(event.type, event.data.text) for event in found]
        return found


def change_of(event: Event) -> Change:
    assert event.change
    return event.change


def old_of(change: Change) -> Any:
    assert change.old
    return change.old.value


@pytest.fixture
async def cdc_bus(nats_url: str) -> AsyncIterator[EventBus]:
    """Without a stream of events, before and after."""
    bus = EventBus(nats_url)
    await bus.start()
    await _remove(bus)
    yield bus
    await _remove(bus)
    await bus.close()


async def _remove(bus: EventBus) -> None:
    for info in await bus.jetstream.streams_info():
        if any(subject.startswith("atlasdb.") for subject in info.config.subjects or ()):
            await bus.jetstream.delete_stream(info.config.name or "")


@pytest.fixture
async def stored(cdc_bus: EventBus) -> Stored:
    return Stored(cdc_bus)


@pytest.fixture
async def make_relay(tenants: Tenants, cdc_bus: EventBus) -> AsyncIterator[Callable[[], Relay]]:
    """Not started; closed after the test, and the slot is removed."""
    made: list[Relay] = []

    def make(metrics: Metrics | None = None) -> Relay:
        made.append(Relay(tenants, cdc_bus, SETTINGS, metrics or Metrics()))
        return made[-1]

    yield make
    for relay in made:
        await relay.close()
    await forget_slots(tenants)


async def forget_slots(tenants: Tenants) -> None:
    async with tenants.admin() as admin:

        async def idle() -> bool:
            cursor = await admin.execute(
                "SELECT FROM pg_replication_slots WHERE database = current_database() AND active"
            )
            return not cursor.rowcount

        await eventually(idle)
        await admin.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
        )
        await admin.execute("UPDATE atlas.cdc SET slot = NULL, gap = NULL")


async def streaming(tenants: Tenants, *, but: int = 0) -> int:
    """The backend that streams, once there is one, and it is not `but`. Who only makes the slot has it, too."""
    async with tenants.admin() as admin:

        async def found() -> int | None:
            cursor = await admin.execute(
                "SELECT active_pid FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid"
                " WHERE database = current_database()"
            )
            row = await cursor.fetchone()
            return row[0] if row and row[0] != but else None

        return await eventually(found)


@pytest.fixture
async def relay(make_relay: Callable[[], Relay], tenants: Tenants) -> Relay:
    """Streaming."""
    made = make_relay()
    await made.start()
    await streaming(tenants)
    return made


@pytest.fixture
async def person(tenants: Tenants, project: str) -> AsyncIterator[AsyncConnection]:
    """A tenant with psql."""
    async with await AsyncConnection.connect(tenants.psql_url(project), autocommit=True) as connection:
        yield connection


async def run(connection: AsyncConnection, *statements: str) -> None:
    for statement in statements:
        await connection.execute(statement.encode())


@dataclass(slots=True)
class OwnPostgres:
    """A Postgres of one test with a tenants database, to be killed and started."""

    url: str
    part: Part
    running: Running | None = None

    def start(self) -> None:
        """As soon as nothing of the one before is at work any more."""
        deadline_s = time.monotonic() + 15
        while True:
            self.running = start(self.part, f"pytest-{secrets.token_hex(4)}")
            try:
                self.running.wait_ready()
                return
            except PartFailed:
                self.running.close()
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """It has no time to write anything."""
        if self.running is not None:
            self.running.kill()
            self.running.close()
            self.running = None


@pytest.fixture
def make_postgres(stack_dir: Path) -> Iterator[Callable[..., OwnPostgres]]:
    """Makes a running one; `options` are settings of the server. What is committed survives its death."""
    made: list[OwnPostgres] = []

    def make(backend_bytes: int = postgres.BACKEND_DATA_BYTES, **options: str) -> OwnPostgres:
        name, account = f"pg-{secrets.token_hex(3)}", servant()
        data, sockets = stack_dir / name, stack_dir / f"{name}s"
        bin_dir = postgres.prepare(data, sockets, stack_dir / "bin", account)
        options = {**QUICK, "synchronous_commit": "on", **options}
        part = postgres.part(data, sockets, bin_dir, stack_dir / f"{name}.log", account, **options)
        found = OwnPostgres(postgres.url(sockets, "tenants"), replace(part, data_bytes=backend_bytes))
        found.start()
        made.append(found)
        with psycopg.connect(postgres.url(sockets, "postgres"), autocommit=True) as admin:
            admin.execute("CREATE DATABASE tenants")
        return found

    yield make
    for server in made:
        server.kill()
