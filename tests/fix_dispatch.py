"""Dispatchers on a real NATS and a real Postgres, around an Invoker that does what the test says."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from nats.js.errors import NotFoundError
from psycopg.rows import dict_row

from engines.contract import Outcome, Response, Result
from server.dispatch.dispatcher import Dispatcher
from server.dispatch.identity import delivery_id
from server.errors import AtlasError
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import Event
from server.events.json_text import read
from server.events.publisher import Published, Publisher
from server.functions.outcomes import error_of
from server.invocations.invoke import Call, Finished
from server.postgres.changes import Changes
from server.postgres.control import Pool, open_pool, transaction
from server.settings import Settings
from server.triggers.cache import TriggerCache
from tests.fix_functions import add_project
from tests.fix_runs import DEADLINE_S, eventually
from tests.fix_triggers import add_function, add_trigger, change_trigger

SETTINGS = Settings(events_keep_hours=1, events_keep_mb=64)
TYPE = "order.paid"
QUICK = {"attempts": 3, "backoff_ms": 10, "max_backoff_ms": 20}
"""A retry policy that tests need not wait for."""

Answer = Result | AtlasError | None
Work = Callable[[Call], Awaitable[Answer]]


async def fine(call: Call) -> Answer:
    return None


def status(code: int) -> Result:
    return Result(outcome=Outcome.OK, response=Response(status=code, headers=(), body=b""))


THREW = Result(outcome=Outcome.EXCEPTION)


class Invoker:
    """Runs calls with `work`, and notes them."""

    def __init__(self, work: Work = fine) -> None:
        self.work = work
        self.calls: list[Call] = []
        self.running: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()

    async def invoke(self, call: Call) -> Finished:
        self.calls.append(call)
        self.running[call.trigger] += 1
        self.peak[call.trigger] = max(self.peak[call.trigger], self.running[call.trigger])
        try:
            answer = await self.work(call)
        finally:
            self.running[call.trigger] -= 1
        if isinstance(answer, AtlasError):
            raise answer
        result = answer or Result(outcome=Outcome.OK)
        if result.outcome is not Outcome.OK:
            raise error_of(result)
        return Finished(call.run_id, result)

    def data(self) -> list[Any]:
        """What the events of the calls held, in the order of the calls."""
        return [json.loads(call.body.data)["data"] for call in self.calls]


class Workflows:
    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []

    async def start(self, **given: Any) -> None:
        self.started.append(given)


@dataclass
class Worker:
    """A process, as far as dispatch is concerned."""

    dispatcher: Dispatcher
    invoker: Invoker
    changes: Changes
    triggers: TriggerCache
    bus: EventBus
    pool: Pool
    workflows: Workflows

    async def start(self) -> "Worker":
        await self.changes.start()
        await self.triggers.start()
        await self.dispatcher.start()
        return self

    async def stop(self, drain_s: float = 5.0) -> None:
        await self.dispatcher.close(drain_s)
        await self.changes.close()
        await self.bus.close()
        await self.pool.close()


@dataclass
class Site:
    """A project with a function, a stream of events, and workers."""

    pool: Pool
    bus: EventBus
    publisher: Publisher
    changes: Changes
    project_id: str
    function_id: str
    control_url: str
    nats_url: str
    workers: list[Worker] = field(default_factory=list)

    async def worker(self, work: Work = fine, *, slots: int = 16, lease_s: float = 15.0, pool_s: float = 5.0) -> Worker:
        """One more, not started."""
        pool = open_pool(self.control_url, max_size=6, timeout_s=pool_s)
        await pool.open(wait=True)
        bus, changes, invoker, workflows = (
            EventBus(self.nats_url),
            Changes(self.control_url),
            Invoker(work),
            Workflows(),
        )
        await bus.start()
        triggers = TriggerCache(pool, changes)
        dispatcher = Dispatcher(
            bus=bus,
            settings=SETTINGS,
            pool=pool,
            changes=changes,
            triggers=triggers,
            invoker=invoker,
            workflows=workflows,
            slots=slots,
            lease_s=lease_s,
        )
        self.workers.append(Worker(dispatcher, invoker, changes, triggers, bus, pool, workflows))
        return self.workers[-1]

    async def trigger(self, **columns: Any) -> str:
        values = {"event_type": TYPE, "retry": QUICK} | columns
        return await add_trigger(self.pool, self.changes, self.function_id, **values)

    async def change(self, trigger_id: str, assignments: str, *values: object) -> None:
        await change_trigger(self.pool, self.changes, trigger_id, assignments, *values)

    def event(self, data: object = None, **fields: Any) -> Event:
        values = {"id": str(uuid4()), "type": TYPE, "project_id": self.project_id, "source": "test"}
        told = {"time": datetime.now(UTC), "data": read(json.dumps(data).encode())}
        return Event(**{**values, **told, **fields})

    async def publish(self, *data: object, **fields: Any) -> list[str]:
        """Events with this as their data; their ids."""
        answers: list[Published] = await self.publisher.publish([self.event(each, **fields) for each in data])
        return [answer.id for answer in answers]

    async def rows(self, trigger_id: str | None = None) -> list[dict[str, Any]]:
        """The ledger, in the order of the stream."""
        async with transaction(self.pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                "SELECT * FROM deliveries WHERE %(id)s::uuid IS NULL OR trigger_id = %(id)s ORDER BY sequence, id",
                {"id": trigger_id},
            )
            return await cursor.fetchall()

    async def states(self, trigger_id: str | None = None) -> Counter[str]:
        return Counter(row["state"] for row in await self.rows(trigger_id))

    async def until(self, states: dict[str, int], trigger_id: str | None = None, within_s: float = DEADLINE_S) -> None:
        """The ledger comes to hold exactly so many of each state."""
        seen: Counter[str] = Counter()

        async def reached() -> bool:
            nonlocal seen
            seen = await self.states(trigger_id)
            return seen == Counter(states)

        try:
            await eventually(reached, within_s)
        except AssertionError:
            raise AssertionError(f"the ledger holds {dict(seen)}, not {states}") from None

    async def taken(self) -> None:
        """Every event is acknowledged."""

        async def all_acknowledged() -> bool:
            try:
                info = await self.bus.jetstream.consumer_info(stream.NAME, "dispatch")
            except NotFoundError:  # not made yet
                return False
            return not info.num_pending and not info.num_ack_pending

        await eventually(all_acknowledged)

    def id_of(self, trigger_id: str, event_id: str) -> str:
        return delivery_id(trigger_id, event_id)


async def open_site(pool: Pool, changes: Changes, control_url: str, nats_url: str) -> Site:
    bus = EventBus(nats_url)
    await bus.start()
    with contextlib.suppress(Exception):
        await bus.jetstream.delete_stream(stream.NAME)
    publisher = Publisher(bus, SETTINGS)
    await publisher.start()
    await changes.start()
    project_id = await add_project(pool)
    function_id = await add_function(pool, project_id)
    return Site(pool, bus, publisher, changes, project_id, function_id, control_url, nats_url)


async def close_site(site: Site) -> None:
    for worker in site.workers:
        await worker.stop(drain_s=0)
    with contextlib.suppress(Exception):
        await site.bus.jetstream.delete_stream(stream.NAME)
    await site.bus.close()


@pytest.fixture
async def dispatch_site(pool: Pool, changes: Changes, control_url: str, nats_url: str) -> AsyncIterator[Site]:
    made = await open_site(pool, changes, control_url, nats_url)
    yield made
    await close_site(made)


class Gate:
    """Work that waits until it is let go."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, call: Call) -> Answer:
        await self.open.wait()
        return None
